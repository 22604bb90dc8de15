//! XML as EC2 writes it: elements in the order given, no attributes but the root's namespace.
//!
//! Invariant: whatever text comes in, what goes out is well-formed XML 1.0.

use std::fmt::Display;

#[derive(Debug, Default)]
pub struct Xml {
    text: String,
}

impl Xml {
    /// A document with one root element.
    pub fn document(root: &str, namespace: Option<&str>, inside: impl FnOnce(&mut Self)) -> String {
        let mut xml = Self { text: String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n") };
        xml.text.push('<');
        xml.text.push_str(root);
        if let Some(namespace) = namespace {
            xml.text.push_str(" xmlns=\"");
            xml.escape(namespace);
            xml.text.push('"');
        }
        xml.text.push('>');
        inside(&mut xml);
        xml.close(root);
        xml.text
    }

    pub fn element(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.open(name);
        let start = self.text.len();
        inside(self);
        self.end(name, start);
    }

    /// `<name><item>…</item>…</name>`.
    pub fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.element(name, |xml| {
            for item in items {
                xml.element("item", |xml| each(xml, item));
            }
        });
    }

    /// Text, a number, a flag, a time. Never called with an empty number: clients choke on one.
    pub fn value(&mut self, name: &str, value: impl Display) {
        self.open(name);
        let start = self.text.len();
        let text = value.to_string();
        self.escape(&text);
        self.end(name, start);
    }

    /// Nothing at all when there is no value.
    pub fn optional(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.value(name, value);
        }
    }

    fn open(&mut self, name: &str) {
        self.text.push('<');
        self.text.push_str(name);
        self.text.push('>');
    }

    /// Closes an element whose inside begins at `start`; an empty one becomes `<name/>`.
    fn end(&mut self, name: &str, start: usize) {
        if self.text.len() == start {
            self.text.pop();
            self.text.push_str("/>");
        } else {
            self.close(name);
        }
    }

    fn close(&mut self, name: &str) {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push('>');
    }

    fn escape(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                '"' => self.text.push_str("&quot;"),
                // A parser would turn a bare one into a line feed.
                '\r' => self.text.push_str("&#13;"),
                '\t' | '\n' => self.text.push(c),
                // XML 1.0 has no way to write these.
                '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => self.text.push('\u{fffd}'),
                _ => self.text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_nest_in_the_order_given() {
        let text = Xml::document("R", Some("urn:x"), |xml| {
            xml.list("set", [1, 2], |xml, n| xml.value("n", n));
            xml.list("none", [0; 0], |xml, n| xml.value("n", n));
            xml.optional("absent", None::<u32>);
            xml.value("flag", true);
        });
        assert_eq!(
            text,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<R xmlns=\"urn:x\"><set><item><n>1</n>\
             </item><item><n>2</n></item></set><none/><flag>true</flag></R>"
        );
    }

    #[test]
    fn text_is_escaped() {
        let text = Xml::document("R", None, |xml| xml.value("t", "<a&\"b\">\r\n\0\u{ffff}é"));
        assert!(
            text.ends_with("<R><t>&lt;a&amp;&quot;b&quot;&gt;&#13;\n\u{fffd}\u{fffd}é</t></R>")
        );
    }
}
