//! The node role as a real process, between real NBD clients and a primary and manager that the
//! test plays.

mod devices;
mod failures;
mod nbd;
mod primary;
mod tools;
mod world;
