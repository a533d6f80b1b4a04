//! The network: nobody is reached over a link that is cut, and each link is as bad as it is told to be.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidemill_chaos_tests::fault::link::{Link, cut_all};
use tidemill_chaos_tests::fault::network::{Network, Place};
use tidemill_chaos_tests::fault::proxy::{Behaviour, Proxy, Way};

const ONE: Place = Place::Node(0);
const OTHER: Place = Place::Node(1);
const BROKER: Place = Place::Broker(1);
const PORT: u16 = 5000;
const SHORT: Duration = Duration::from_millis(600);
/// TCP waits longer each time before it sends what was lost again.
const LONG: Duration = Duration::from_secs(20);

/// What servers have got, over all connections and as datagrams.
#[derive(Debug, Default)]
struct Got {
    bytes: AtomicU64,
    connections: AtomicU64,
}

fn at<T: Send>(network: &Network, place: Place, work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        network.enter(place).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// Answers with what it gets, over TCP and UDP, at each place; until the test has ended.
fn network(places: &[Place]) -> (Arc<Network>, Arc<Got>) {
    let network = Network::make().unwrap();
    let got = Arc::new(Got::default());
    for place in places {
        network.add(*place).unwrap();
        let (tcp, udp) = at(&network, *place, || {
            let any = (Ipv4Addr::UNSPECIFIED, PORT);
            (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
        });
        let counts = got.clone();
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                counts.connections.fetch_add(1, Ordering::Relaxed);
                let counts = counts.clone();
                std::thread::spawn(move || {
                    let mut bytes = [0; 16 * 1024];
                    while let Ok(count @ 1..) = stream.read(&mut bytes) {
                        counts.bytes.fetch_add(count as u64, Ordering::Relaxed);
                        if stream.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 100];
            while let Ok((count, from)) = udp.recv_from(&mut bytes) {
                drop(udp.send_to(&bytes[..count], from));
            }
        });
    }
    (network, got)
}

fn connect(network: &Network, from: Place, to: Place) -> std::io::Result<TcpStream> {
    let stream = at(network, from, || {
        TcpStream::connect_timeout(&(to.address(), PORT).into(), SHORT)
    })?;
    stream.set_read_timeout(Some(SHORT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether bytes go there and come back; how long that takes.
fn ping(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let began = Instant::now();
    let mut back = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut back)?;
    Ok(began.elapsed())
}

/// The quickest of some pings: how long the way takes, also while the machine is busy.
fn quickest(stream: &mut TcpStream) -> std::io::Result<Duration> {
    (1..10).try_fold(ping(stream)?, |least, _| Ok(least.min(ping(stream)?)))
}

/// Waits until what servers and the proxy count as `what` is `expected`.
fn counted(what: &str, count: &AtomicU64, expected: u64) {
    let began = Instant::now();
    while count.load(Ordering::Relaxed) < expected && began.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(count.load(Ordering::Relaxed), expected, "{what}");
}

/// How many of `count` datagrams come back.
fn datagrams(network: &Network, from: Place, to: Place, count: usize) -> usize {
    let socket = at(network, from, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    socket.set_read_timeout(Some(SHORT)).unwrap();
    for _ in 0..count {
        socket.send_to(b"x", (to.address(), PORT)).unwrap();
    }
    (0..count).take_while(|_| socket.recv(&mut [0; 4]).is_ok()).count()
}

#[test]
fn nothing_passes_a_cut_and_everything_after() {
    let (network, _) = network(&[ONE, OTHER, BROKER]);
    let mut before = connect(&network, ONE, OTHER).unwrap();
    ping(&mut before).unwrap();
    let cut = cut_all(&network, &[(ONE, OTHER)]).unwrap();
    assert!(ping(&mut before).is_err(), "an open connection goes on");
    for (from, to) in [(ONE, OTHER), (OTHER, ONE)] {
        assert!(connect(&network, from, to).is_err(), "{from} reaches {to}");
        assert_eq!(datagrams(&network, from, to, 3), 0, "{from} reaches {to}");
    }
    // Nobody else notices.
    for (from, to) in [
        (ONE, BROKER),
        (OTHER, BROKER),
        (BROKER, ONE),
        (Place::Hub, ONE),
        (Place::Hub, OTHER),
    ] {
        ping(&mut connect(&network, from, to).unwrap()).unwrap();
    }
    drop(cut);
    ping(&mut connect(&network, OTHER, ONE).unwrap()).unwrap();
    before.set_read_timeout(Some(LONG)).unwrap();
    // What was sent meanwhile arrives, too.
    before.read_exact(&mut [0; 4]).unwrap();
    ping(&mut before).unwrap();
}

#[test]
fn a_cut_one_way_lets_the_other_way_through() {
    let (network, _) = network(&[ONE, OTHER]);
    let heard = at(&network, OTHER, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000)).unwrap()
    });
    let deaf = at(&network, ONE, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000)).unwrap()
    });
    for socket in [&heard, &deaf] {
        socket.set_read_timeout(Some(SHORT)).unwrap();
    }
    let cut = Link::cut(&network, OTHER, ONE).unwrap();
    deaf.send_to(b"x", (OTHER.address(), 7000)).unwrap();
    heard.recv(&mut [0; 4]).unwrap();
    heard.send_to(b"x", (ONE.address(), 7000)).unwrap();
    assert!(deaf.recv(&mut [0; 4]).is_err(), "{OTHER} is heard");
    assert!(connect(&network, ONE, OTHER).is_err(), "acknowledgements get through");
    drop(cut);
    heard.send_to(b"x", (ONE.address(), 7000)).unwrap();
    deaf.recv(&mut [0; 4]).unwrap();
}

#[test]
fn a_part_of_the_packets_is_lost() {
    let (network, _) = network(&[ONE, OTHER]);
    assert_eq!(datagrams(&network, ONE, OTHER, 50), 50);
    let loss = Link::lossy(&network, ONE, OTHER, 30).unwrap();
    let back = datagrams(&network, ONE, OTHER, 200);
    assert!((100..180).contains(&back), "{back} of 200 came back with 30 % lost");
    drop(loss);
    assert_eq!(datagrams(&network, ONE, OTHER, 50), 50);
}

/// Has a proxy between the two that behaves so while `look` looks at what comes of it; before and after, the link is as good as ever.
fn proxied(behaviour: Behaviour, look: impl FnOnce(&Network, &Got, &Proxy) + Send) {
    let (network, got) = network(&[ONE, OTHER]);
    let mut before = connect(&network, ONE, OTHER).unwrap();
    assert!(quickest(&mut before).unwrap() < Duration::from_millis(30));
    network
        .inside(async || {
            let proxy = Proxy::between(&network, ONE, OTHER, &[PORT], behaviour).await?;
            assert!(
                ping(&mut before).is_err(),
                "a connection from before goes on as if nothing had happened"
            );
            got.bytes.store(0, Ordering::Relaxed);
            got.connections.store(0, Ordering::Relaxed);
            tokio::task::block_in_place(|| look(&network, &got, &proxy));
            // The other direction's connections are not touched.
            let other = tokio::task::block_in_place(|| quickest(&mut connect(&network, OTHER, ONE).unwrap()).unwrap());
            assert!(other < Duration::from_millis(30), "{other:?}");
            let mut last = connect(&network, ONE, OTHER)?;
            drop(proxy);
            let broken = tokio::task::block_in_place(|| ping(&mut last));
            assert!(broken.is_err(), "a connection outlives the proxy");
            Ok(())
        })
        .unwrap();
    assert!(quickest(&mut connect(&network, ONE, OTHER).unwrap()).unwrap() < Duration::from_millis(30));
}

#[test]
fn what_is_delayed_comes_that_much_later() {
    let delay = Duration::from_millis(100);
    let behaviour = Behaviour {
        delay,
        ..Behaviour::default()
    };
    proxied(behaviour, |network, _, _| {
        let mut stream = connect(network, ONE, OTHER).unwrap();
        let took = quickest(&mut stream).unwrap();
        assert!(took >= delay * 2 && took < delay * 4, "{took:?}");
    });
}

#[test]
fn jitter_makes_times_differ_and_keeps_the_order() {
    let behaviour = Behaviour {
        jitter: Duration::from_millis(100),
        ..Behaviour::default()
    };
    proxied(behaviour, |network, _, _| {
        let mut stream = connect(network, ONE, OTHER).unwrap();
        let took: Vec<Duration> = (0..20).map(|_| ping(&mut stream).unwrap()).collect();
        let (least, most) = (took.iter().min().unwrap(), took.iter().max().unwrap());
        assert!(*most - *least > Duration::from_millis(40), "{least:?} to {most:?}");
        let sent: Vec<u8> = (0..100).collect();
        for byte in &sent {
            stream.write_all(&[*byte]).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut back = [0; 100];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back.as_slice(), sent);
    });
}

#[test]
fn a_narrow_link_passes_no_more_than_it_may() {
    let behaviour = Behaviour {
        bandwidth: Some(100 * 1024),
        ..Behaviour::default()
    };
    proxied(behaviour, |network, _, proxy| {
        let began = Instant::now();
        // Two connections share the link.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut stream = connect(network, ONE, OTHER).unwrap();
                    stream.set_read_timeout(Some(LONG)).unwrap();
                    stream.write_all(&[1; 50 * 1024]).unwrap();
                    stream.read_exact(&mut [0; 50 * 1024]).unwrap();
                });
            }
        });
        let took = began.elapsed();
        assert!(
            took > Duration::from_millis(900) && took < Duration::from_secs(4),
            "{took:?}"
        );
        assert_eq!(proxy.counts.passed.load(Ordering::Relaxed), 200 * 1024);
    });
}

#[test]
fn a_half_open_connection_stays_and_says_nothing() {
    let behaviour = Behaviour {
        swallow: Some(Way::Answered),
        ..Behaviour::default()
    };
    proxied(behaviour, |network, got, proxy| {
        let mut stream = connect(network, ONE, OTHER).unwrap();
        for round in 1..=3 {
            let error = ping(&mut stream).unwrap_err();
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::WouldBlock,
                "the connection does not stay: {error}"
            );
            counted("bytes that are asked arrive", &got.bytes, round * 4);
            counted("bytes of answers are swallowed", &proxy.counts.swallowed, round * 4);
        }
    });
}

#[test]
fn connections_are_reset_again_and_again() {
    let within = Duration::from_millis(300);
    let behaviour = Behaviour {
        reset_within: Some(within),
        ..Behaviour::default()
    };
    proxied(behaviour, |network, _, proxy| {
        for _ in 0..4 {
            let mut stream = connect(network, ONE, OTHER).unwrap();
            let began = Instant::now();
            while ping(&mut stream).is_ok() {
                assert!(began.elapsed() < within * 3, "it is not reset");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert_eq!(proxy.counts.resets.load(Ordering::Relaxed), 4);
    });
}

#[test]
fn what_is_asked_arrives_twice_and_is_answered_once() {
    let behaviour = Behaviour {
        duplicate: true,
        ..Behaviour::default()
    };
    proxied(behaviour, |network, got, proxy| {
        let mut stream = connect(network, ONE, OTHER).unwrap();
        for _ in 0..5 {
            ping(&mut stream).unwrap();
        }
        // What arrives once too often has arrived by then.
        std::thread::sleep(Duration::from_millis(100));
        counted("bytes arrive twice", &got.bytes, 40);
        counted("connections", &got.connections, 2);
        counted("bytes are repeated", &proxy.counts.repeated, 20);
    });
}

#[test]
fn what_a_dead_run_left_is_removed_when_the_next_begins() {
    // No process has this number: it is above the highest.
    let name = "tidemill-4999999-0-hub";
    let ip = |arguments: &[&str]| {
        std::process::Command::new("ip")
            .args(arguments)
            .status()
            .unwrap()
            .success()
    };
    assert!(ip(&["netns", "add", name]));
    let mut left = std::process::Command::new("ip")
        .args(["netns", "exec", name, "sleep", "600"])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let network = Network::make().unwrap();
    let hub = network.name_of(Place::Hub).unwrap();
    let there = |name: &str| std::path::Path::new("/run/netns").join(name).exists();
    assert!(there(&hub) && !there(name));
    assert!(!left.wait().unwrap().success(), "what ran in it was killed");
    drop(network);
    assert!(!there(&hub));
}
