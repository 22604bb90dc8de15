mod config;
mod life;
