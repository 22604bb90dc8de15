//! The engine on a simulated drive.

mod cases;
mod damage;
mod order;
mod paging;
mod sim;
mod versions;
