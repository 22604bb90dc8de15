//! Ledger and placement over random fleets.
