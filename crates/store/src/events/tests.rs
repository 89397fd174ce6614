use super::*;
use serde_json::json;
use std::sync::Mutex;
use std::time::{Duration, Instant};

fn event(time: i64, kind: EventKind, service: &str) -> NewEvent {
    NewEvent {
        time,
        kind,
        service: Some(service.to_owned()),
        instance: None,
        message: format!("{kind} {time}"),
        details: json!({ "n": time }),
    }
}

fn open(path: &Path, bounds: Bounds) -> EventLog {
    let opened = EventLog::open(path, bounds, |_| ()).unwrap();
    assert_eq!(opened.damaged, None);
    opened.log
}

#[test]
fn what_is_recorded_is_read_by_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = EventLog::path(folder.path());
    assert_eq!(EventLog::read(&path, &EventFilter::default()).unwrap(), []);
    let log = open(&path, Bounds::default());
    let all = [(1, EventKind::Ready, "a"), (2, EventKind::Denied, "b"), (3, EventKind::Ready, "b"), (4, EventKind::Ready, "a")];
    for (time, kind, service) in all {
        log.record(event(time, kind, service));
    }
    drop(log);
    let times = |filter: EventFilter| EventLog::read(&path, &filter).unwrap().iter().map(|e| e.event.time).collect::<Vec<_>>();
    let none = EventFilter::default;
    assert_eq!(times(none()), [1, 2, 3, 4]);
    assert_eq!(times(EventFilter { service: Some("a".to_owned()), ..none() }), [1, 4]);
    assert_eq!(times(EventFilter { kind: Some(EventKind::Ready), ..none() }), [1, 3, 4]);
    assert_eq!(times(EventFilter { since: Some(3), ..none() }), [3, 4]);
    assert_eq!(times(EventFilter { last: Some(2), kind: Some(EventKind::Ready), ..none() }), [3, 4]);
    let second = EventLog::read(&path, &none()).unwrap()[1].clone();
    assert_eq!(second.event, event(2, EventKind::Denied, "b"));
    assert_eq!(times(EventFilter { after: Some(second.id), ..none() }), [3, 4]);
}

#[test]
fn every_kind_is_known_by_its_word() {
    for kind in EventKind::ALL {
        assert_eq!(kind.word().parse(), Ok(*kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), json!(kind.word()));
    }
    assert!("nothing".parse::<EventKind>().unwrap_err().to_string().contains("deploy-failed"));
}

#[test]
fn a_flood_is_bounded_and_whoever_records_never_waits() {
    let folder = tempfile::tempdir().unwrap();
    let path = EventLog::path(folder.path());
    let log = open(&path, Bounds { count: 300, age: i64::MAX, least: 0 });
    let mut large = event(0, EventKind::Denied, "a");
    large.message = "ü".repeat(100_000);
    large.details = json!("x".repeat(100_000));
    for time in 0..20_000 {
        log.record(NewEvent { time, ..large.clone() });
    }
    drop(log);
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size < 6 << 20, "{size}");
    let kept = EventLog::read(&path, &EventFilter::default()).unwrap();
    assert!(kept.len() <= 300 + 2 * 512, "{}", kept.len());
    assert!(kept.iter().all(|e| e.event.message.len() < 2_010 && e.event.details == Value::Null || e.event.kind == EventKind::EventsLost));
    let first = kept.first().unwrap().id;
    assert!(kept.iter().zip(first..).all(|(e, id)| e.id == id), "ids grow by one");
}

#[test]
fn what_is_too_old_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = EventLog::path(folder.path());
    let bounds = Bounds { count: 1_000, age: 10, least: 1 };
    let log = open(&path, bounds);
    log.record(event(1, EventKind::Ready, "a"));
    drop(log);
    let log = open(&path, bounds);
    log.record(event(100, EventKind::Ready, "a"));
    drop(log);
    let kept = EventLog::read(&path, &EventFilter::default()).unwrap();
    assert_eq!(kept.iter().map(|e| (e.id, e.event.time)).collect::<Vec<_>>(), [(2, 100)], "an id is not used twice");
}

#[test]
fn a_clock_that_is_ahead_does_not_empty_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = EventLog::path(folder.path());
    let bounds = Bounds { count: 1_000, age: 10, least: 5 };
    let log = open(&path, bounds);
    for time in 1..=8 {
        log.record(event(time, EventKind::Ready, "a"));
    }
    drop(log);
    // The first event of each that writes has the log looked through.
    let log = open(&path, bounds);
    log.record(event(4_000_000_000_000, EventKind::Ready, "a"));
    drop(log);
    let kept = EventLog::read(&path, &EventFilter::default()).unwrap();
    assert_eq!(kept.iter().map(|e| e.id).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
}

#[test]
fn a_damaged_log_is_put_aside_and_another_begun() {
    let folder = tempfile::tempdir().unwrap();
    let path = EventLog::path(folder.path());
    std::fs::write(&path, "this is no database, but it is long enough to be taken for one".repeat(100)).unwrap();
    let opened = EventLog::open(&path, Bounds::default(), |_| ()).unwrap();
    assert!(opened.damaged.unwrap().exists());
    opened.log.record(event(1, EventKind::Ready, "a"));
    drop(opened.log);
    assert_eq!(EventLog::read(&path, &EventFilter::default()).unwrap().len(), 1);
}

#[test]
fn a_reader_sees_what_is_written_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let path = EventLog::path(folder.path());
    let written = Arc::new(Mutex::new(0));
    let seen = written.clone();
    let opened = EventLog::open(&path, Bounds::default(), move |count| *seen.lock().unwrap() = count).unwrap();
    for time in 1..=3 {
        opened.log.record(event(time, EventKind::Ready, "a"));
        let began = Instant::now();
        while *written.lock().unwrap() < opened.log.taken() {
            assert!(began.elapsed() < Duration::from_mins(1));
            std::thread::yield_now();
        }
        let read = EventLog::read(&path, &EventFilter { after: Some(time - 1), ..EventFilter::default() }).unwrap();
        assert_eq!(read.len(), 1);
    }
}
