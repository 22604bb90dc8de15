//! The engine on a simulated drive.

mod cases;
mod crash;
mod damage;
mod order;
mod sim;
