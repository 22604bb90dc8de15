//! Answers as tables for people.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// A table without lines: columns can be cut by other tools.
pub struct Rows {
    table: Table,
    empty: &'static str,
}

impl Rows {
    pub fn new<const N: usize>(header: [&'static str; N], empty: &'static str) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self { table, empty }
    }

    pub fn push<const N: usize>(&mut self, row: [String; N]) {
        self.table.add_row(row);
    }

    pub fn print(self) -> String {
        if self.table.is_empty() {
            return self.empty.to_owned();
        }
        self.table.trim_fmt()
    }
}

/// A field as text; `-` when it is absent, null or empty.
pub fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        _ => "-".to_owned(),
    }
}

pub fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}

/// The elements of a list; none when it is absent.
pub fn elements<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn up(value: &Value) -> String {
    if value["up"].as_bool() == Some(true) { "up" } else { "down" }.to_owned()
}

/// Bytes in the largest binary unit that leaves a whole part.
pub fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| count >> shift > 0) else {
        return format!("{count} B");
    };
    let tenths = (u128::from(count) * 10) >> shift;
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}"),
    }
}
