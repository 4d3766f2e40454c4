use bytes::Bytes;

use super::*;
use crate::ids::UnixMs;
use crate::model::properties::{StateUnderTest, online};
use crate::model::state::into_result;
use crate::proto::command::Intent;
use crate::proto::{Command, DeviceSuspend, Principal, Role, TokenRevoke};

fn ask(code: &str, address: &str) -> Intent {
    let secret_hash = Bytes::from(vec![7; HASH]);
    Intent::PairAsk(PairAsk {
        code: code.into(),
        secret_hash,
        device_id: "till".into(),
        name: String::new(),
        address: address.into(),
    })
}

fn decide(code: &str, approved: bool, device_id: &str) -> Intent {
    let (code, device_id, by) = (code.into(), device_id.into(), "boss".into());
    Intent::PairDecide(PairDecide { code, approved, class: 5, device_id, by, ..PairDecide::default() })
}

fn claim(code: &str, secret: u8) -> Intent {
    Intent::PairClaim(PairClaim { code: code.into(), secret_hash: Bytes::from(vec![secret; HASH]) })
}

/// The n-th code.
fn code(n: usize) -> String {
    let at = |place: u32| char::from(CODE_LETTERS[n / 31usize.pow(place) % 31]);
    (0..CODE_LENGTH as u32).map(at).collect()
}

#[test]
fn codes_have_no_letters_that_look_alike() {
    assert!(b"01ILO".iter().all(|byte| !CODE_LETTERS.contains(byte)));
    assert!(valid_code(&code(5)) && !valid_code("AAAAAAA") && !valid_code("AAAAAAA0") && !valid_code("aaaaaaaa"));
}

#[test]
fn a_token_is_given_once_to_whoever_has_the_secret() {
    let mut b = StateUnderTest::new();
    let code = code(1);
    b.ok(ask(&code, "10.0.0.1"));
    assert_eq!(b.code(claim(&code, 7)), Code::RoleChange, "nobody has approved it");
    b.ok(decide(&code, true, ""));
    assert_eq!(b.code(decide(&code, false, "")), Code::RoleChange);
    assert_eq!(b.code(claim(&code, 8)), Code::NotRegistered);
    let Reply::Pairing(row) = b.ok(claim(&code, 7)) else { panic!() };
    assert_eq!((row.device_id.as_str(), row.class), ("till", 5));
    assert_eq!(b.code(claim(&code, 7)), Code::RoleChange);
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(again.pairings(UnixMs(0)), b.state.pairings(UnixMs(0)));
}

#[test]
fn a_pairing_ends_and_a_refusal_is_final() {
    let mut b = StateUnderTest::new();
    b.ok(ask(&code(1), "a"));
    b.ok(decide(&code(1), false, ""));
    assert_eq!((b.code(decide(&code(1), true, "")), b.code(claim(&code(1), 7))), (Code::RoleChange, Code::RoleChange));
    b.ok(ask(&code(2), "a"));
    b.now += limits::PAIRING_MS;
    assert_eq!(b.code(decide(&code(2), true, "")), Code::NotRegistered);
    assert!(b.state.pairing(&code(2), UnixMs(b.now)).is_none() && b.state.pairings(UnixMs(b.now)).is_empty());
    // Its row goes with the next one that asks.
    b.ok(ask(&code(3), "a"));
    assert_eq!(b.state.pairings(UnixMs(0)).len(), 1);
}

#[test]
fn few_wait_in_all_and_of_one_address() {
    let mut b = StateUnderTest::new();
    for n in 0..limits::PAIRINGS_OF_ADDRESS {
        b.ok(ask(&code(n), "a"));
    }
    assert_eq!(b.code(ask(&code(99), "a")), Code::Unavailable);
    assert_eq!(b.code(ask(&code(0), "b")), Code::Unavailable, "the code is another one's");
    for n in limits::PAIRINGS_OF_ADDRESS..limits::PAIRINGS {
        b.ok(ask(&code(n), &format!("b{}", n / 4)));
    }
    assert_eq!(b.code(ask(&code(99), "c")), Code::Unavailable);
    b.now += limits::PAIRING_MS;
    b.ok(ask(&code(99), "a"));
}

#[test]
fn codes_that_have_ended_keep_nobody_waiting() {
    let mut b = StateUnderTest::new();
    // More devices than may wait at a time, one after the other, all behind one address.
    for n in 0..limits::PAIRINGS * 2 {
        b.ok(ask(&code(n), "a"));
        match n % 2 {
            0 => b.ok(decide(&code(n), false, "")),
            _ => b.ok(decide(&code(n), true, &format!("till-{n}"))),
        };
        if n % 2 == 1 {
            b.ok(claim(&code(n), 7));
        }
        b.now += 1;
    }
    // The oldest ones gave way.
    let kept = |b: &StateUnderTest, n: usize| b.state.pairing(&code(n), UnixMs(b.now)).is_some();
    assert!(!kept(&b, limits::PAIRINGS - 1) && kept(&b, limits::PAIRINGS));
    // One that is approved and not collected counts.
    for n in 0..limits::PAIRINGS_OF_ADDRESS {
        b.ok(ask(&code(500 + n), "a"));
        b.ok(decide(&code(500 + n), true, &format!("scale-{n}")));
    }
    assert_eq!(b.code(ask(&code(600), "a")), Code::Unavailable);
}

#[test]
fn who_is_kept_out_is_not_let_in_and_what_is_asked_is_checked() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 0, Role::Client));
    b.ok(Intent::DeviceSuspend(DeviceSuspend { device_id: "till".into(), suspended: true, by: "boss".into() }));
    b.ok(ask(&code(1), "a"));
    assert_eq!(b.code(decide(&code(1), true, "")), Code::Forbidden);
    b.ok(decide(&code(1), true, "other"));
    let bad = |change: fn(&mut PairAsk)| {
        let Intent::PairAsk(mut asked) = ask(&code(2), "a") else { unreachable!() };
        change(&mut asked);
        Intent::PairAsk(asked)
    };
    for (intent, expected) in [
        (bad(|a| a.code = "AAAAAAA0".into()), Code::InvalidData),
        (bad(|a| a.secret_hash = Bytes::new()), Code::InvalidData),
        (bad(|a| a.device_id = "a\n".into()), Code::Registration),
        (bad(|a| a.name = "x".repeat(limits::PAIR_NAME + 1)), Code::InvalidData),
        (bad(|a| a.address = "\u{7}".into()), Code::InvalidData),
    ] {
        assert_eq!(b.code(intent), expected);
    }
    let Intent::PairAsk(nameless) = ask(&code(3), "a") else { unreachable!() };
    b.ok(Intent::PairAsk(PairAsk { device_id: String::new(), ..nameless }));
    assert_eq!(b.code(decide(&code(3), true, "")), Code::InvalidData, "nobody said which device it is");
    let Intent::PairDecide(wrong) = decide(&code(3), true, "x") else { unreachable!() };
    let wrong = PairDecide { class: 6, ..wrong };
    assert_eq!(b.code(Intent::PairDecide(wrong)), Code::InvalidData);
    b.ok(decide(&code(3), true, "x"));
}

#[test]
fn nobody_lets_in_a_class_above_its_own_whatever_its_gateway_says() {
    let mut b = StateUnderTest::new();
    for device in ["boss", "thief"] {
        b.ok(online(device, 20, Role::Client));
    }
    for n in 0..limits::PAIRINGS_OF_ADDRESS {
        b.ok(ask(&code(n), "a"));
    }
    // A decision of the token of `sub` that its gateway says is `asker`'s.
    let decides = |b: &mut StateUnderTest, n: usize, asker: Asker, class: u32, sub: &str, by: &str| {
        let Intent::PairDecide(decision) = decide(&code(n), true, &format!("new-{n}")) else { unreachable!() };
        let intent = Some(Intent::PairDecide(PairDecide { class, by: by.into(), asker: asker.into(), ..decision }));
        let principal = (!sub.is_empty()).then(|| Principal { sub: sub.into(), jti: format!("token-of-{sub}") });
        let (outcome, effects) = b.send(Command { origin: None, at_ms: b.now, intent, principal });
        assert!(effects.is_empty());
        into_result(outcome).map(drop).map_err(|error| (error.code, error.field().unwrap_or_default().to_owned()))
    };
    let head = b.state.meta().audit_head;
    let refused = |code: Code, field: &str| Err((code, field.to_owned()));
    assert_eq!(decides(&mut b, 0, Asker::Manager, 1, "boss", "boss"), refused(Code::Forbidden, "class"));
    assert_eq!(decides(&mut b, 0, Asker::Device, 5, "thief", "thief"), refused(Code::Forbidden, ""));
    // In another one's name, or in nobody's.
    assert_eq!(decides(&mut b, 0, Asker::Admin, 1, "thief", "boss"), refused(Code::InvalidData, "by"));
    assert_eq!(decides(&mut b, 0, Asker::Admin, 1, "", "boss"), refused(Code::InvalidData, "by"));
    // With a token that was taken back before this stands in the log, or of a device that is kept out.
    b.ok(Intent::TokenRevoke(TokenRevoke { jti: "token-of-boss".into(), exp_ms: u64::MAX, by: "office".into() }));
    assert_eq!(decides(&mut b, 0, Asker::Admin, 5, "boss", "boss"), refused(Code::Credentials, ""));
    b.ok(Intent::DeviceSuspend(DeviceSuspend { device_id: "thief".into(), suspended: true, by: "office".into() }));
    assert_eq!(decides(&mut b, 0, Asker::Admin, 5, "thief", "thief"), refused(Code::Forbidden, ""));
    let waiting = |b: &StateUnderTest| {
        b.state.pairings(UnixMs(0)).iter().filter(|r| r.status() == PairingStatus::Waiting).count()
    };
    assert_eq!(waiting(&b), limits::PAIRINGS_OF_ADDRESS, "nothing was decided");
    assert!(b.state.meta().audit_head <= head + 3, "only the revocation and the suspension were written");
    for (n, asker, class) in [(0, Asker::Manager, 2), (1, Asker::Admin, 1), (2, Asker::Manager, 5)] {
        assert_eq!(decides(&mut b, n, asker, class, "office", "office"), Ok(()));
    }
    // A node of an older version does not say who asks: it has looked itself.
    assert_eq!(decides(&mut b, 3, Asker::Unset, 1, "", "office"), Ok(()));
    assert_eq!(waiting(&b), 0);
}
