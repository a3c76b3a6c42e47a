//! What runs on the cluster now.
