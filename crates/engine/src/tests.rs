//! The engine on a simulated drive.

mod cases;
mod damage;
mod direct;
mod layers;
mod order;
mod paging;
mod prepare;
mod queries;
mod sim;
mod versions;
