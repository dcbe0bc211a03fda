//! Tables that align: a heading line, one line per row, two spaces between columns, no frame.
//!
//! Every cell is made harmless on the way in, so that a row is one line whatever a machine called itself.

use comfy_table::{CellAlignment, Row, Table as Layout};

use super::text::{Style, Tone, inert};

pub struct Table {
    layout: Layout,
    tones: Vec<Tone>,
    indent: &'static str,
}

impl Table {
    /// Columns whose heading begins with `>` align right.
    pub fn new(headings: &[&str]) -> Table {
        let mut layout = Layout::new();
        layout.load_style(comfy_table::presets::NOTHING);
        layout.set_header(headings.iter().map(|heading| heading.trim_start_matches('>').to_owned()));
        for (index, heading) in headings.iter().enumerate() {
            if let Some(column) = layout.column_mut(index) {
                let last = index + 1 == headings.len();
                column.set_padding((0, if last { 0 } else { 2 }));
                if heading.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Table { layout, tones: Vec::new(), indent: "" }
    }

    pub fn indented(self, indent: &'static str) -> Table {
        Table { indent, ..self }
    }

    pub fn row<T: AsRef<str>>(&mut self, tone: Tone, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| inert(cell.as_ref())).collect();
        self.layout.add_row(Row::from(cells));
        self.tones.push(tone);
    }

    pub fn is_empty(&self) -> bool {
        self.tones.is_empty()
    }

    /// The heading and the rows, without line ends.
    pub fn lines(&self, style: Style) -> Vec<String> {
        let tones = std::iter::once(Tone::Heading).chain(self.tones.iter().copied());
        let painted = self.layout.lines().zip(tones);
        painted.map(|(line, tone)| format!("{}{}", self.indent, style.paint(tone, line.trim_end()))).collect()
    }

    pub fn render(&self, style: Style) -> String {
        self.lines(style).iter().map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_rows_stay_one_line() {
        let mut table = Table::new(&["NAME", ">BYTES", "NOTE"]);
        table.row(Tone::Plain, ["a", "5", "first\nsecond"]);
        table.row(Tone::Bad, ["longer", "12345", ""]);
        assert_eq!(
            table.render(Style::PLAIN),
            "NAME    BYTES  NOTE\na           5  first\\u{a}second\nlonger  12345\n"
        );
        let coloured = table.lines(Style { colour: true });
        assert_eq!(coloured[2], "\x1b[31mlonger  12345\x1b[0m");
    }
}
