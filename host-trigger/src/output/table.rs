//! A table for people: columns as wide as their widest cell.

/// The lines of `rows`, the first of which is the head. An empty cell becomes a dash.
pub(crate) fn table<const N: usize>(rows: Vec<[String; N]>) -> Vec<String> {
    let rows: Vec<[String; N]> = rows
        .into_iter()
        .map(|row| row.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }))
        .collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
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
