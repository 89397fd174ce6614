//! The lowering of one instance, whole.

#[test]
fn an_instance_lowers_to_this() {}
