//! Jobs and CronJobs.

pub(crate) mod cronjob;
pub(crate) mod job;
