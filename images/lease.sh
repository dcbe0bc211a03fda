#!/bin/busybox sh
# udhcpc calls this in the deploy ramdisk. It sets up the interface and prints one line, which farrier-agent reads.
case $1 in
deconfig)
	busybox ip address flush dev "$interface"
	busybox ip link set "$interface" up
	;;
bound | renew)
	busybox ip address replace "$ip/${mask:-24}" brd + dev "$interface"
	if [ -n "$router" ]; then
		busybox ip route replace default via "${router%% *}" dev "$interface"
	fi
	echo "farrier-lease $ip/${mask:-24} ${router:--} ${lease:-0}"
	;;
nak | leasefail)
	echo "farrier-lease-$1 ${message:-no answer}"
	;;
esac
