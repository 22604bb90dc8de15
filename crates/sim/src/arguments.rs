//! Options of a command line: `--name value` and `--name`. What is not known is refused.

use std::str::FromStr;

#[derive(Debug)]
pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn new(arguments: impl Iterator<Item = String>) -> Self {
        Self(arguments.collect())
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|argument| argument != name);
        self.0.len() < before
    }

    pub fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(at) = self.0.iter().position(|argument| argument == name) else {
            return Ok(None);
        };
        if at + 1 >= self.0.len() {
            return Err(format!("{name} wants a value"));
        }
        let text = self.0.remove(at + 1);
        self.0.remove(at);
        let value = text.parse().map_err(|_| format!("{name} does not take '{text}'"))?;
        Ok(Some(value))
    }

    /// Everything has been asked for.
    pub fn end(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some(unknown) => Err(format!("'{unknown}' is not known here; --help says what is")),
        }
    }
}
