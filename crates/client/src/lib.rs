//! Talking to the API server: transports, informers, work queues, leader election, events.
