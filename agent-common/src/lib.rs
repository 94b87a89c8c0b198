#![no_std]
//! Types shared by the eBPF programs and the agent that loads them.
