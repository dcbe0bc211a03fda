//! One token, one agent: whose call counts when answers are lost, repeated or raced.

use super::*;

/// Redemptions race: exactly one of many calls with the same token wins.
#[test]
fn of_many_agents_with_one_token_one_gets_in() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let token = bench.token(1, 1);
    let winners = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| bench.hello(&token, 1, 2).is_ok())).collect();
        calls.into_iter().map(|call| call.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(winners, 1);
    assert_eq!(bench.hellos(1), 1);
}

#[test]
fn an_agent_whose_answer_was_lost_gets_the_same_session_again() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let (older, token) = (bench.token(1, 0), bench.token(1, 1));
    let (nonce, other) = (AgentNonce::numbered(1), AgentNonce::numbered(2));
    let session = bench.hello_with(&token, &nonce, 1, 2).unwrap();
    let before = (bench.node(1), bench.happenings(1));
    assert_eq!(bench.hello_with(&token, &nonce, 1, 3).as_ref(), Ok(&session));
    assert_eq!((bench.node(1), bench.happenings(1)), before, "nothing happens a second time");
    // Killed between the commit and the answer; and back only when the token would be too old for a first use.
    let bench = bench.restart();
    let late = 3 + TOKEN_LIFETIME.as_secs();
    assert_eq!(bench.hello_with(&token, &nonce, 1, late).as_ref(), Ok(&session));
    assert_eq!(bench.hellos(1), 1);

    assert_eq!(bench.hello_with(&older, &nonce, 1, 5), Err(AgentRefusal::TokenSpent), "another token");
    assert_eq!(
        bench.registry.heartbeat(&session, mac(1), ADDRESS, after(5)).map(|it| it.order),
        Ok(None),
        "of another boot"
    );
    assert_eq!(bench.hello_with(&token, &other, 1, 5), Err(AgentRefusal::TokenSpent));
    assert_eq!(bench.hello(&token, 1, 5), Err(AgentRefusal::TokenSpent));
    let spent = |happening: &&Happening| matches!(happening, Happening::AgentRefused { reason, token_issued_at: Some(_) } if reason == "token-spent");
    assert_eq!(bench.happenings(1).iter().filter(spent).count(), 3);
    let elsewhere = bench.registry.hello(&said(&token, Some(nonce)), mac(1), OTHER_ADDRESS, after(6));
    assert_eq!(elsewhere.unwrap_err(), AgentRefusal::WrongAddress);
    bench.assert_stored();

    let next = bench.token(1, 7);
    bench.hello_with(&next, &other, 1, 7).unwrap();
    assert_eq!(bench.hello_with(&token, &nonce, 1, 8), Err(AgentRefusal::TokenSpent), "it booted again");
}

#[test]
fn a_redemption_under_way_or_failed_is_not_confirmed_before_it_is_stored() {
    let bench = Bench::new(UnknownPolicy::Approve);
    bench.seen(1, 0);
    bench.registry.approve(&NodeRef::Mac(mac(1)), after(1)).unwrap();
    let (token, nonce) = (bench.token(1, 1), AgentNonce::numbered(1));
    bench.store.fail_next_commits(2);
    for at in [2, 3] {
        let failed = bench.hello_with(&token, &nonce, 1, at);
        assert!(matches!(failed, Err(AgentRefusal::NotDurable(_))), "{failed:?}");
    }
    let session = bench.hello_with(&token, &nonce, 1, 5).unwrap();
    bench.registry.tick(after(6));
    bench.assert_stored();
    let bench = bench.restart();
    assert_eq!(bench.registry.heartbeat(&session, mac(1), ADDRESS, after(7)).map(|it| it.order), Ok(None));
    assert_eq!(bench.hellos(1), 1);
}

#[test]
fn an_inventory_may_be_reported_again() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let session = bench.hello(&bench.token(1, 1), 1, 1).unwrap();
    let report = |nics: &[u16], at| {
        bench.registry.report_inventory(&session, mac(1), ADDRESS, inventory(nics), after(at)).unwrap()
    };
    report(&[1], 2);
    let node = report(&[1, 2], 3);
    assert_eq!((node.state, node.enrolled_at), (ProvisionState::Manageable, Some(after(2))));
    assert_eq!(node.inventory.unwrap().nics.len(), 2, "what came late is in");
    assert_eq!(bench.node(2).id, node.id);
    bench.assert_stored();
}

/// The battery is empty, and the clock says last year until it is set.
#[test]
fn a_clock_that_was_set_back_turns_no_agent_away() {
    const DAY: u64 = 86_400;
    for later in [false, true] {
        let bench = Bench::new(UnknownPolicy::Enroll);
        bench.seen(1, DAY);
        if later {
            bench.hello(&bench.token(1, DAY), 1, DAY + 1).unwrap();
        }
        let bench = bench.restart();
        bench.seen(1, 5);
        let (token, second) = (bench.token(1, 10), bench.token(1, 11));
        assert_eq!(bench.hello(&token, 1, 12).err(), None);
        assert_eq!(bench.hello(&token, 1, 13), Err(AgentRefusal::TokenSpent));
        assert_eq!(bench.hello(&second, 1, 13), Err(AgentRefusal::TokenSpent), "issued as of the same time");
        // The clock does not tell how old such a token is; memory does.
        let late = bench.token(1, 20);
        let too_late = 21 + TOKEN_LIFETIME.as_secs();
        assert_eq!(bench.hello(&late, 1, too_late), Err(AgentRefusal::TokenExpired));
        let bench = bench.restart();
        assert_eq!(bench.hello(&late, 1, 22), Err(AgentRefusal::TokenExpired), "and a start forgets");
        assert_eq!(bench.hello(&bench.token(1, 23), 1, 24).err(), None);
    }
}

#[test]
fn what_was_dropped_in_memory_is_dropped_on_disk_when_the_node_is_written_again() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    for boot in 0..=BOOTS_MAX as u64 {
        // The batch that begins the last boot drops the first; it fails.
        if boot == BOOTS_MAX as u64 {
            bench.store.fail_next_commits(1000);
        }
        bench.seen(1, boot * 3600);
        bench.file(1, Stage::Kernel, "vmlinuz", boot * 3600 + 1);
    }
    bench.store.fail_next_commits(0);
    bench.registry.tick(after(BOOTS_MAX as u64 * 3600 + 2));
    bench.assert_stored();
}

#[test]
fn s_03_a_token_used_twice_halts_the_boot_and_the_next_one_goes_on() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let (token, nonce, thief) = (bench.token(1, 1), AgentNonce::numbered(1), AgentNonce::numbered(2));
    let session = bench.hello_with(&token, &nonce, 1, 2).unwrap();
    assert_eq!(bench.registry.heartbeat(&session, mac(1), ADDRESS, after(3)).map(|it| it.order), Ok(None));
    assert_eq!(bench.hello_with(&token, &thief, 1, 4), Err(AgentRefusal::TokenSpent));
    let halted = bench.node(1);
    assert_eq!(halted.state, ProvisionState::InspectFailed);
    assert!(halted.failure.unwrap().contains("used twice"));
    bench.registry.tick(after(5));
    let neither_goes_on = |bench: &Bench| {
        let beat = bench.registry.heartbeat(&session, mac(1), ADDRESS, after(6)).map(|it| it.order);
        assert_eq!(beat, Err(AgentRefusal::SessionReplaced));
        assert_eq!(bench.hello_with(&token, &nonce, 1, 6), Err(AgentRefusal::TokenSpent));
    };
    neither_goes_on(&bench);
    let bench = bench.restart();
    neither_goes_on(&bench);
    let next = bench.token(1, 10);
    let session = bench.hello_with(&next, &nonce, 1, 11).unwrap();
    assert_eq!(bench.registry.heartbeat(&session, mac(1), ADDRESS, after(12)).map(|it| it.order), Ok(None));
}
