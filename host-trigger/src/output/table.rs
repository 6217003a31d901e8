//! A table for people: columns as wide as their widest cell.

/// The lines of `rows`, the first of which is the head; all have as many cells. An empty cell
/// becomes a dash.
pub fn table<R: AsRef<[String]>>(rows: Vec<R>) -> Vec<String> {
    let text = |cell: &String| if cell.is_empty() { "-".to_owned() } else { cell.clone() };
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.as_ref().iter().map(text).collect()).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = vec![["A", "LONG"].map(str::to_owned), ["größer", ""].map(str::to_owned)];
        assert_eq!(table(rows), ["A       LONG", "größer  -"]);
    }
}
