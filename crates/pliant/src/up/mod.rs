//! A whole service on this machine.
