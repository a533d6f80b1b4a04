//! Whole queries over a catalog in memory, real parts in a folder and real memtables; and the
//! interleavings that QRY-1 has to stand.

mod administering;
mod interleavings;
mod mistakes;
mod nested;
mod querying;
mod system_tables;
mod world;
