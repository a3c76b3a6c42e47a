//! The join service's request, the only bytes that a node takes from the network before it trusts anybody.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = orch_contract::JoinRequest::parse(bytes) {
        let written = serde_json::to_vec(&request).expect("a request can be written");
        assert!(orch_contract::JoinRequest::parse(&written).is_ok());
    }
});
