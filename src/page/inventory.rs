//! What the agent found in the machine, as lists that align.

use maud::{Markup, html};

use crate::cli::text;
use crate::node::inventory::{BootedBy, Inventory};
use crate::page::words;

pub(super) fn show(inventory: &Inventory) -> Markup {
    let system = &inventory.system;
    let joined = |parts: [&Option<String>; 2]| {
        parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    let booted_by = match inventory.booted_by {
        BootedBy::Bios => "BIOS",
        BootedBy::Uefi => "UEFI",
        BootedBy::UefiSecureBoot => "UEFI with Secure Boot",
    };
    let cpu = &inventory.cpu;
    html! {
        dl.facts {
            (fact("System", &joined([&system.vendor, &system.product])))
            (fact("Serial number", system.serial.as_deref().unwrap_or_default()))
            (fact("Firmware", &joined([&system.bios_vendor, &system.bios_version])))
            (fact("Booted by", booted_by))
            (fact("Processor", &cpu.model))
            (fact("Cores", &format!("{} in {}, {} threads, {}", cpu.cores, words::plural(cpu.sockets.into(), "socket", "sockets"), cpu.logical, cpu.architecture)))
            (fact("Memory", &text::memory(inventory.memory_bytes)))
            (fact("Kernel", &inventory.kernel))
        }
        h3 { "Disks" }
        @if inventory.disks.is_empty() { p.quiet { "None was found." } } @else {
            div.table-scroll tabindex="0" role="region" aria-label="Disks" {
                table.grid {
                    thead { tr { th scope="col" { "Name" } th.number-cell scope="col" { "Size" } th scope="col" { "Kind" } th scope="col" { "Model" } th scope="col" { "Serial number" } } }
                    tbody {
                        @for disk in &inventory.disks {
                            tr {
                                th scope="row" { (words::wire(&disk.name)) }
                                td.number-cell { (text::bytes(disk.bytes)) }
                                td { (if disk.rotational { "rotating" } else { "solid state" }) @if disk.removable { ", removable" } }
                                td { (words::wire(disk.model.as_deref().unwrap_or_default())) }
                                td { (words::wire(disk.serial.as_deref().unwrap_or_default())) }
                            }
                        }
                    }
                }
            }
        }
        h3 { "Network interfaces" }
        @if inventory.nics.is_empty() { p.quiet { "None was found." } } @else {
            div.table-scroll tabindex="0" role="region" aria-label="Network interfaces" {
                table.grid {
                    thead { tr { th scope="col" { "Name" } th scope="col" { "MAC" } th scope="col" { "Link" } th.number-cell scope="col" { "Speed" } th scope="col" { "Driver" } } }
                    tbody {
                        @for nic in &inventory.nics {
                            tr {
                                th scope="row" { (words::wire(&nic.name)) }
                                td.mono { (nic.mac) }
                                td { (if nic.link { "up" } else { "down" }) }
                                td.number-cell { @if let Some(speed) = nic.speed_mbps { (speed) " Mbit/s" } }
                                td { (words::wire(nic.driver.as_deref().unwrap_or_default())) }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn fact(name: &str, value: &str) -> Markup {
    html! {
        @if !value.is_empty() {
            div { dt { (name) } dd { (words::wire(value)) } }
        }
    }
}
