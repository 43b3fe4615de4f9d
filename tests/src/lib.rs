//! The lab that the privileged tests and the demo run in.
