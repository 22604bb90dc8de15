//! The engine on a simulated drive.

mod cases;
mod damage;
mod direct;
mod layers;
mod order;
mod paging;
mod prepare;
mod queries;
mod readahead;
mod sim;
mod versions;
