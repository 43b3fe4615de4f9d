//! The agent and the command line of Tandem.
