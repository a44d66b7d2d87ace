//! Columns of text: what Go's tabwriter makes of lines with tabs in them.

/// Aligns cells: each run of lines that have a cell in a column gets that column as wide as its widest cell.
#[derive(Clone, Debug)]
pub(crate) struct Tabs {
    /// A column is at least this wide.
    minimum: usize,
    /// Spaces behind the widest cell.
    padding: usize,
    /// Widths of what was written before, if that is to be kept to.
    remembered: Option<Vec<usize>>,
}

impl Tabs {
    /// As tables are printed; later texts keep to the widths of earlier ones, so that a watch looks like one table.
    pub(crate) fn of_tables() -> Tabs {
        Tabs { minimum: 6, padding: 3, remembered: Some(Vec::new()) }
    }

    /// As descriptions are printed.
    pub(crate) fn of_descriptions() -> Tabs {
        Tabs { minimum: 0, padding: 2, remembered: None }
    }

    /// Aligns whole lines.
    pub(crate) fn align(&mut self, text: &str) -> String {
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        let mut out = String::with_capacity(text.len() * 2);
        self.block(&lines, &mut Vec::new(), &mut out);
        out
    }

    /// Formats lines that agree in the columns whose widths are known.
    fn block(&mut self, lines: &[Vec<&str>], widths: &mut Vec<usize>, out: &mut String) {
        let column = widths.len();
        // The last cell of a line belongs to no column.
        let has_cell = |line: &Vec<&str>| column + 1 < line.len();
        let mut at = 0;
        while at < lines.len() {
            if !has_cell(&lines[at]) {
                write_line(&lines[at], widths, out);
                at += 1;
                continue;
            }
            let end = lines[at..].iter().position(|line| !has_cell(line)).map_or(lines.len(), |n| at + n);
            let cells = lines[at..end].iter().map(|line| line[column].chars().count() + self.padding);
            let mut width = cells.max().unwrap_or(0).max(self.minimum);
            if let Some(remembered) = &mut self.remembered {
                match remembered.get_mut(column) {
                    Some(before) => {
                        width = width.max(*before);
                        *before = width;
                    }
                    None => remembered.push(width),
                }
            }
            widths.push(width);
            self.block(&lines[at..end], widths, out);
            widths.pop();
            at = end;
        }
    }
}

fn write_line(line: &[&str], widths: &[usize], out: &mut String) {
    for (i, cell) in line.iter().enumerate() {
        out.push_str(cell);
        if let Some(width) = widths.get(i) {
            let spaces = width.saturating_sub(cell.chars().count());
            out.extend(std::iter::repeat_n(' ', spaces));
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_end_where_a_line_has_no_cell() {
        let text = "Name:\tweb\nLabels:\ta=b\n\tcc=d\nplain\nA:\tx\n";
        let want = "Name:    web\nLabels:  a=b\n         cc=d\nplain\nA:  x\n";
        assert_eq!(Tabs::of_descriptions().align(text), want);
    }

    #[test]
    fn later_rows_keep_to_earlier_widths() {
        let mut tabs = Tabs::of_tables();
        assert_eq!(tabs.align("NAME\tAGE\nlong-name\t1s\n"), "NAME        AGE\nlong-name   1s\n");
        assert_eq!(tabs.align("x\t2s\n"), "x           2s\n");
    }
}
