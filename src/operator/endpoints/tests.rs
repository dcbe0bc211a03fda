use std::collections::BTreeSet;

use super::*;

#[test]
fn each_route_stands_in_the_table_once_and_changes_take_more_than_a_viewer() {
    let mut seen = BTreeSet::new();
    for endpoint in all() {
        assert!(seen.insert((endpoint.path, endpoint.method.to_string())), "{} twice", endpoint.path);
        let changes_nothing = endpoint.method == Method::GET || endpoint.path == "/api/v1/login-links";
        assert!(changes_nothing || endpoint.role > Role::Viewer, "{}", endpoint.path);
    }
    // Panics on a route named twice.
    let _: Router<Shared> = router().merge(access::routes());
}
