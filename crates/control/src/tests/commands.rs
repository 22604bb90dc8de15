//! Refusals and defaults of the commands.
