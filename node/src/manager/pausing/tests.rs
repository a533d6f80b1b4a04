use super::*;
use tidemill_core::TableId;
use tidemill_core::catalog::{PipeSettings, Source};

fn pipe(id: u64, state: PipeState) -> Pipe {
    Pipe {
        id: PipeId(id),
        name: format!("pipe{id}"),
        table: TableId(1),
        source: Source::Writers { next: 0 },
        topic: None,
        state,
        settings: PipeSettings::default(),
        backfills: None,
        format: Default::default(),
        created_at_ms: 0,
    }
}

/// The ids of those that are given at a look `seconds` after `begin`.
fn look(pausing: &mut Pausing, begin: Instant, seconds: u64, pipes: &[Pipe]) -> Vec<u64> {
    let given = pausing.look(begin + Duration::from_secs(seconds), pipes);
    given.iter().map(|pipe| pipe.id.0).collect()
}

#[test]
fn only_what_has_been_pausing_all_the_time_is_given() {
    let (mut pausing, begin) = (Pausing::default(), Instant::now());
    let states = |second| {
        vec![
            pipe(1, PipeState::Running),
            pipe(2, PipeState::Paused),
            pipe(3, PipeState::Pausing),
            pipe(4, second),
        ]
    };
    assert_eq!(look(&mut pausing, begin, 0, &states(PipeState::Pausing)), [0; 0]);
    // Pipe 4 is resumed, and pausing again: that is another statement.
    assert_eq!(look(&mut pausing, begin, 30, &states(PipeState::Running)), [0; 0]);
    assert_eq!(look(&mut pausing, begin, 31, &states(PipeState::Pausing)), [0; 0]);
    assert_eq!(look(&mut pausing, begin, 59, &states(PipeState::Pausing)), [0; 0]);
    assert_eq!(look(&mut pausing, begin, 60, &states(PipeState::Pausing)), [3]);
    // Until it is done, it is said again.
    assert_eq!(look(&mut pausing, begin, 91, &states(PipeState::Pausing)), [3, 4]);
    assert_eq!(look(&mut pausing, begin, 92, &[]), [0; 0]);
    assert!(pausing.0.is_empty(), "what is gone is forgotten");
}
