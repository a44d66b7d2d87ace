//! The API server as its clients meet it: requests enter the whole handler chain, answers are what is sent back.

mod access;
mod api;
mod apply;
mod conversion;
mod custom;
mod decoding;
mod deletion;
mod hook_server;
mod lists;
mod mutating_policies;
mod objects;
mod openapi;
mod patches;
mod pods;
mod policies;
mod quotas;
mod services;
mod several;
mod shapes;
mod watches;
mod webhooks;
