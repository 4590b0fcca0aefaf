//! What cannot be gets a clear error, and nothing else is lost: a pair on the same driver goes on beside each of these.

use std::fs;
use std::os::unix::net::UnixListener;

use media_driver::{Config, DriverError, EmbeddedDriver};
use ringbus::channel::InvalidChannel;
use ringbus::control::message::{Event, Greeting, PROTOCOL_VERSION, Refusal, Request};
use ringbus::control::socket::{self, new_socket};
use ringbus::{
    Access, Address, ChannelSpec, Client, Error, Grant, HugePages, ImageEvent, Kind, Overflow, Publication, Subscription,
};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use testing::{
    DriverProcess, KINDS, Party, Role, assert_works, connect, event, fds_of, in_time, limit, pair, play_driver, skip_unless_root,
    until,
};

const SMALLEST: u64 = 4096;
const NOBODY: u32 = 65534;
const SOME_GROUP: u32 = 4711;

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "stranger" => stranger(role),
        "without descriptors" => without_descriptors(role),
        "without room for links" => without_room_for_links(role),
        "without memory" => without_memory(role),
        other => panic!("there is no role {other}"),
    }
}

/// A pair that has nothing to do with it.
struct Neighbours {
    publication: Publication,
    subscription: Subscription,
}

impl Neighbours {
    fn of(client: &Client) -> Self {
        let name = format!("neighbours/{}", std::process::id());
        let (publication, subscription) = pair(client, &name, Kind::Broadcast, Overflow::Block, SMALLEST);
        Self { publication, subscription }
    }

    #[track_caller]
    fn assert_unharmed(&mut self) {
        assert_works(&mut self.publication, &mut self.subscription);
    }
}

fn launch() -> (EmbeddedDriver, Client, Neighbours) {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    let neighbours = Neighbours::of(&client);
    (driver, client, neighbours)
}

#[track_caller]
fn refusal<T>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused(refusal)) => refusal,
        Err(other) => panic!("not refused by the driver: {other}"),
        Ok(_) => panic!("it was allowed"),
    }
}

/// The message says all of that.
#[track_caller]
fn assert_says(error: &impl ToString, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "\"{text}\" does not say \"{word}\"");
    }
}

// ---- Channels that cannot be ----

#[test]
fn bad_names_are_refused() {
    let (_driver, client, mut neighbours) = launch();
    let long = "x".repeat(256);
    for bad in ["", "/", "/a", "a/", "a//b", "two words", "ümlaut", "a\nb", "a\0", "*", long.as_str()] {
        for result in [client.publication(bad).map(drop), client.subscription(bad).map(drop)] {
            let Err(error @ Error::Invalid(InvalidChannel::Name { .. })) = result else { panic!("{bad:?}: {result:?}") };
            assert_says(&error, &["bad channel name", "A-Z a-z 0-9 . _ -", "255"]);
            assert!(!error.to_string().contains(['\n', '\0']), "shown harmless");
        }
    }
    neighbours.assert_unharmed();
}

#[test]
fn capacities_that_are_no_power_of_two_are_refused_and_a_good_one_is_suggested() {
    let (_driver, client, mut neighbours) = launch();
    let cases = [
        (0, "4096"),
        (1, "4096"),
        (2048, "4096"),
        (5000, "8192"),
        (65537, "131072"),
        (8 << 30, "4294967296"),
        (u64::MAX, "4294967296"),
    ];
    for (bad, good) in cases {
        for result in [
            client.channel("new").capacity(bad).publication().map(drop),
            client.channel("new").capacity(bad).subscription().map(drop),
        ] {
            let refusal = refusal(result);
            assert!(matches!(refusal, Refusal::Invalid(InvalidChannel::Capacity { .. })), "{refusal}");
            assert_says(&refusal, &[&bad.to_string(), "power of two", &format!("for example {good}")]);
        }
    }
    neighbours.assert_unharmed();
}

#[test]
fn a_lossy_mpsc_channel_and_too_long_lists_are_refused() {
    let (_driver, client, mut neighbours) = launch();
    let channel = || client.channel("new").kind(Kind::Mpsc).overflow(Overflow::Lossy);
    for refusal in [refusal(channel().publication()), refusal(channel().subscription())] {
        assert_eq!(refusal, Refusal::Invalid(InvalidChannel::LossyMpsc));
        assert_says(&refusal, &["mpsc", "lossy", "broadcast"]);
    }
    let access = Access { publish: Grant { uids: (0..257).collect(), gids: vec![] }, subscribe: Grant::default() };
    let refusal = refusal(client.channel("new").access(access).publication());
    assert_eq!(refusal, Refusal::Invalid(InvalidChannel::Grants { most: 256 }));
    neighbours.assert_unharmed();
}

#[test]
fn a_property_that_disagrees_is_named_with_what_each_side_says() {
    let (_driver, client, mut neighbours) = launch();
    let (mut publication, mut subscription) = pair(&client, "there", Kind::Broadcast, Overflow::Block, SMALLEST);
    let there = || client.channel("there");
    let grant = Access { publish: Grant { uids: vec![7], gids: vec![] }, subscribe: Grant::default() };
    for (channel, says) in [
        (there().kind(Kind::Mpsc), ["kind", "broadcast", "mpsc"]),
        (there().kind(Kind::Spsc), ["kind", "broadcast", "spsc"]),
        (there().overflow(Overflow::Lossy), ["overflow", "block", "lossy"]),
        (there().capacity(8192), ["capacity", "4096", "8192"]),
        // Not a capacity at all, but above all not this channel's.
        (there().capacity(5000), ["capacity", "4096", "5000"]),
        (there().access(grant), ["access", "[]", "[7]"]),
        (there().huge_pages(HugePages::Always), ["huge pages", "Never", "Always"]),
        (there().prefault(true), ["prefault", "false", "true"]),
        (there().lock(true), ["lock", "false", "true"]),
    ] {
        for refusal in [refusal(channel.clone().publication()), refusal(channel.clone().subscription())] {
            assert!(matches!(refusal, Refusal::Mismatch { .. }), "{refusal}");
            assert_says(&refusal, &["there"]);
            assert_says(&refusal, &says);
        }
    }
    // Who leaves it open takes it as it is.
    let newcomer = there().subscription().expect("a subscription");
    assert_eq!(newcomer.channel(), publication.channel());
    drop(newcomer);
    connect(&mut publication, 1);
    assert_works(&mut publication, &mut subscription);
    neighbours.assert_unharmed();
}

#[test]
fn a_second_one_is_refused_where_there_can_be_only_one() {
    let (driver, client, mut neighbours) = launch();
    for kind in KINDS {
        let name = kind.to_string();
        let (mut publication, mut subscription) = pair(&client, &name, kind, Overflow::Block, SMALLEST);
        let other = driver.connect().expect("a client");
        let mut refusals = Vec::new();
        if kind == Kind::Spsc {
            refusals.push(("publication", refusal(other.publication(&name))));
        }
        if kind != Kind::Broadcast {
            refusals.push(("subscription", refusal(other.subscription(&name))));
        }
        for (what, refusal) in refusals {
            assert!(matches!(refusal, Refusal::Occupied { .. }), "{refusal}");
            assert_says(&refusal, &[&name, what, &std::process::id().to_string()]);
        }
        assert_works(&mut publication, &mut subscription);
    }
    neighbours.assert_unharmed();
}

#[test]
fn huge_pages_that_are_not_there_are_an_error_that_says_what_to_do() {
    let (_driver, client, mut neighbours) = launch();
    if ringbus::memory::memfd::meminfo("HugePages_Total:").unwrap_or(0) > 0 {
        eprintln!("skipped: there are huge pages");
        return;
    }
    let refusal = refusal(client.channel("huge").capacity(4 << 20).huge_pages(HugePages::Always).publication());
    assert_says(&refusal, &["vm.nr_hugepages"]);
    neighbours.assert_unharmed();
}

// ---- Who may ----

/// Somebody without any rights tries to publish and to subscribe, and says how that went. Arguments: channel, a group to be in or 0.
fn stranger(mut role: Role) {
    let (channel, group): (String, u32) = (role.argument(0), role.argument(1));
    role.become_nobody(if group == 0 { &[] } else { std::slice::from_ref(&group) });
    let client = match Client::builder().address(role.address.clone()).connect() {
        Ok(client) => client,
        Err(error) => {
            role.say(format!("{error:?}"));
            role.say(error);
            return role.hold();
        }
    };
    role.say("connected");
    let mut publication = client.publication(&channel);
    let mut subscription = client.subscription(&channel);
    role.say(publication.as_ref().map_or_else(ToString::to_string, |_| "may publish".to_owned()));
    role.say(subscription.as_ref().map_or_else(ToString::to_string, |_| "may subscribe".to_owned()));
    loop {
        match role.hear().as_str() {
            "send" => {
                let publication = publication.as_mut().expect("it may");
                assert_eq!(publication.wait_connected(in_time()), Ok(true));
                publication.offer_until(0, b"from a stranger", in_time()).expect("room in time");
            }
            text => {
                let message = subscription.as_mut().expect("it may").recv_until(in_time()).expect("a message");
                assert_eq!(message.payload(), text.as_bytes());
                role.say("received");
            }
        }
    }
}

/// A driver that all may connect to, and its neighbours.
fn public_driver() -> (DriverProcess, Client, Neighbours) {
    let driver = DriverProcess::launch();
    driver.open_to_all();
    let client = driver.connect();
    let neighbours = Neighbours::of(&client);
    (driver, client, neighbours)
}

#[test]
fn a_user_whom_the_socket_does_not_admit_is_told_so() {
    if skip_unless_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let address = Address::Path(directory.path().join("driver.sock"));
    let mut config = Config::new(address.clone());
    config.mode = 0o600;
    let driver = EmbeddedDriver::launch_with(&config).expect("a driver");
    let mut neighbours = Neighbours::of(&driver.connect().expect("root may"));
    // First the directory keeps strangers out, then the socket itself.
    for mode in [0o700, 0o755] {
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("it is ours");
        let stranger = Party::start("stranger", &address, &[&"neighbours", &0]);
        let error = stranger.hear();
        assert!(error.contains("NoPermission"), "{error}");
        assert_says(&stranger.hear(), &["no permission", &address.to_string()]);
        stranger.finish();
    }
    neighbours.assert_unharmed();
}

#[test]
fn a_channel_is_its_creators_unless_access_is_granted() {
    if skip_unless_root() {
        return;
    }
    let (driver, client, mut neighbours) = public_driver();
    for kind in KINDS {
        let name = format!("private/{kind}");
        let (mut publication, mut subscription) = pair(&client, &name, kind, Overflow::Block, SMALLEST);
        let stranger = Party::start("stranger", &driver.address, &[&name, &SOME_GROUP]);
        stranger.expect("connected");
        let (uid, name) = (format!("uid {NOBODY}"), name.as_str());
        assert_says(&stranger.hear(), &[&uid, "may not publish", name, "uid 0"]);
        assert_says(&stranger.hear(), &[&uid, "may not subscribe", name, "uid 0"]);
        stranger.finish();
        assert_works(&mut publication, &mut subscription);
    }
    neighbours.assert_unharmed();
}

#[test]
fn access_is_granted_to_users_and_groups_for_publishing_and_subscribing_apart() {
    if skip_unless_root() {
        return;
    }
    let (driver, client, mut neighbours) = public_driver();
    let uids = |uids: &[u32]| Grant { uids: uids.to_vec(), gids: vec![] };
    let gids = |gids: &[u32]| Grant { uids: vec![], gids: gids.to_vec() };
    // The user, its primary group, a supplementary group.
    let grants = [uids(&[1, NOBODY]), gids(&[NOBODY]), gids(&[1, SOME_GROUP])];
    for (index, grant) in grants.into_iter().enumerate() {
        for kind in [Kind::Broadcast, Kind::Mpsc] {
            let name = format!("publish/{index}/{kind}");
            let access = Access { publish: grant.clone(), subscribe: Grant::default() };
            let mut subscription = client.channel(&name).kind(kind).access(access).subscription().expect("a subscription");
            let mut stranger = Party::start("stranger", &driver.address, &[&name, &SOME_GROUP]);
            stranger.expect("connected");
            stranger.expect("may publish");
            assert_says(&stranger.hear(), &["may not subscribe"]);
            for _ in 0..3 {
                stranger.tell("send");
                assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"from a stranger");
            }
        }
        let name = format!("subscribe/{index}");
        let access = Access { publish: Grant::default(), subscribe: grant };
        let mut publication = client.channel(&name).access(access).publication().expect("a publication");
        let mut stranger = Party::start("stranger", &driver.address, &[&name, &SOME_GROUP]);
        stranger.expect("connected");
        assert_says(&stranger.hear(), &["may not publish"]);
        stranger.expect("may subscribe");
        connect(&mut publication, 1);
        for text in ["to a stranger", "and again"] {
            stranger.tell(text);
            publication.offer_until(0, text.as_bytes(), in_time()).expect("room in time");
            stranger.expect("received");
        }
    }
    neighbours.assert_unharmed();
}

// ---- What is no driver ----

fn connect_to(address: &Address) -> Result<Client, Error> {
    Client::builder().address(address.clone()).connect()
}

#[test]
fn where_nobody_listens_there_is_no_driver() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "no socket").expect("a file");
    let stale = directory.path().join("stale");
    drop(UnixListener::bind(&stale).expect("a socket"));
    let stream = directory.path().join("stream");
    let _listener = UnixListener::bind(&stream).expect("a socket");
    let paths = [
        directory.path().join("missing"),
        directory.path().join("missing/too"),
        directory.path().join("x".repeat(200)),
        directory.path().to_owned(),
        file,
        stale,
        stream,
    ];
    let addresses = paths.map(Address::Path).into_iter().chain([Address::Abstract("ringbus-test-nobody".to_owned())]);
    for address in addresses {
        let error = connect_to(&address).expect_err("nobody is there");
        assert!(matches!(error, Error::NoDriver { .. }), "{error:?}");
        assert_says(&error, &[&address.to_string(), "ringbusd", "ringbus driver"]);
    }
}

/// Listens as a driver would, and does that with the first client.
fn impostor(act: impl FnOnce(rustix::fd::OwnedFd) + Send + 'static) -> (Address, std::thread::JoinHandle<()>) {
    let directory = tempfile::tempdir().expect("a directory");
    let address = Address::Path(directory.path().join("socket"));
    let listener = new_socket(SocketFlags::empty()).expect("a socket");
    rustix::net::bind(&listener, &address.to_socket_address().expect("a short path")).expect("it is free");
    rustix::net::listen(&listener, 10).expect("it listens");
    let thread = std::thread::spawn(move || {
        let _directory = directory;
        act(rustix::net::accept(&listener).expect("a client"));
    });
    (address, thread)
}

#[test]
fn a_driver_of_another_version_is_told_from_ours() {
    let (address, thread) = impostor(|socket| {
        let greeting = socket::receive(&socket, RecvFlags::empty()).expect("a greeting").expect("a greeting");
        assert_eq!(Greeting::from_bytes(&greeting.bytes), Some(Greeting::own()));
        let answer = Greeting { version: 99, pid: 4242 };
        socket::send(&socket, &answer.to_bytes(), &[], SendFlags::empty()).expect("it listens");
    });
    let error = connect_to(&address).expect_err("it is another version");
    assert!(matches!(error, Error::ProtocolVersion { driver: 99, pid: 4242, .. }), "{error:?}");
    assert_says(&error, &["99", "4242", &PROTOCOL_VERSION.to_string(), &address.to_string()]);
    thread.join().expect("no panic");
}

/// Found by the fuzzer: on an `mpsc` channel a publication has no ring of its own, so nobody looked at its capacity before it was computed with.
#[test]
fn a_channel_that_cannot_be_is_no_answer() {
    let (address, thread) = impostor(|socket| {
        let receive = || socket::receive(&socket, RecvFlags::empty()).expect("a packet");
        receive().expect("a greeting");
        socket::send(&socket, &Greeting::own().to_bytes(), &[], SendFlags::empty()).expect("it listens");
        let request = receive().expect("a request").decode::<Request>().expect("a request");
        let Request::AddPublication { request, name, properties } = request else { panic!("{request:?}") };
        let mut spec = ChannelSpec::new(name, 0, &properties).expect("it can be");
        spec.capacity = 0;
        let answer = Event::PublicationAdded { request, id: 7, spec, page_size: SMALLEST };
        socket::send(&socket, &socket::encode(&answer), &[], SendFlags::empty()).expect("it listens");
        while receive().is_some() {}
    });
    let client = connect_to(&address).expect("it seems to be a driver");
    let outcome = client.channel("a").kind(Kind::Mpsc).publication();
    let error = outcome.map(|mut publication| publication.offer(&[0; 64])).expect_err("there can be no such channel");
    assert!(matches!(error, Error::NotADriver { .. }), "{error:?}");
    drop(client);
    thread.join().expect("no panic");
}

#[test]
fn a_client_of_another_version_is_told_ours_and_let_go() {
    let (driver, _client, mut neighbours) = launch();
    let socket = new_socket(SocketFlags::empty()).expect("a socket");
    rustix::net::connect(&socket, &driver.address().to_socket_address().expect("an address")).expect("it listens");
    let greeting = Greeting { version: 99, pid: 1 };
    socket::send(&socket, &greeting.to_bytes(), &[], SendFlags::empty()).expect("it listens");
    let answer = socket::receive(&socket, RecvFlags::empty()).expect("an answer").expect("an answer");
    assert_eq!(Greeting::from_bytes(&answer.bytes), Some(Greeting::own()));
    assert!(socket::receive(&socket, RecvFlags::empty()).expect("the end").is_none());
    neighbours.assert_unharmed();
}

#[test]
fn what_does_not_answer_as_a_driver_is_none() {
    let say = |bytes: &'static [u8]| {
        move |socket: rustix::fd::OwnedFd| {
            socket::receive(&socket, RecvFlags::empty()).expect("a greeting");
            socket::send(&socket, bytes, &[], SendFlags::empty()).expect("it listens");
        }
    };
    let hang_up = |socket: rustix::fd::OwnedFd| {
        socket::receive(&socket, RecvFlags::empty()).expect("a greeting");
    };
    let impostors = [
        impostor(say(b"220 mail.example.org ESMTP")),
        impostor(say(b"x")),
        impostor(say(&[0; 16])),
        impostor(hang_up),
        impostor(drop),
    ];
    for (address, thread) in impostors {
        let error = connect_to(&address).expect_err("it is no driver");
        assert!(matches!(error, Error::NotADriver { .. }), "{error:?}");
        assert_says(&error, &[&address.to_string(), "does not answer as a media driver does"]);
        thread.join().expect("no panic");
    }
}

#[test]
fn a_driver_that_is_stopped_is_not_waited_for_for_ever() {
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let mut neighbours = Neighbours::of(&client);
    driver.party().stop();
    let asking = std::thread::spawn({
        let client = client.clone();
        move || client.publication("unanswered").map(drop)
    });
    let error = connect_to(&driver.address).expect_err("it says nothing");
    assert!(matches!(error, Error::NotADriver { .. }), "{error:?}");
    assert_says(&error, &["stopped"]);
    let error = asking.join().expect("no panic").expect_err("it says nothing");
    assert_says(&error, &["stopped"]);
    neighbours.assert_unharmed();
    driver.party().go_on();
    // What nobody waited for any more was given up again.
    until("it is given up", || client.list().expect("the driver is there").len() == 2);
    drop(connect_to(&driver.address).expect("it answers again"));
}

// ---- What runs out ----

/// Most descriptors a process has here; more are not looked for.
const ENOUGH: u64 = 1000;

/// The descriptors this process has. Looking at them in /proc would take one more.
fn descriptors() -> Vec<u64> {
    // SAFETY: asks for flags, which changes nothing.
    (0..ENOUGH).filter(|&fd| unsafe { libc::fcntl(fd as libc::c_int, libc::F_GETFD) } != -1).collect()
}

/// Leaves this process so many descriptors and no more, until that is dropped.
struct Shortage(Vec<fs::File>);

impl Shortage {
    fn but(left: u64) -> (Self, u64) {
        let there = descriptors();
        let highest = there.last().copied().unwrap_or(0);
        // New ones go into holes first.
        let holes = highest + 1 - there.len() as u64;
        let fill = (0..holes).map(|_| fs::File::open("/dev/null").expect("a descriptor")).collect();
        let most = highest + 1 + left;
        limit(libc::RLIMIT_NOFILE, most);
        (Self(fill), most)
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        self.0.clear();
        limit(libc::RLIMIT_NOFILE, ENOUGH);
    }
}

/// Tries everything with fewer and fewer descriptors left.
fn without_descriptors(mut role: Role) {
    limit(libc::RLIMIT_NOFILE, ENOUGH);
    let client = role.client();
    let mut neighbours = Neighbours::of(&client);
    neighbours.assert_unharmed();
    let before = (descriptors(), client.list().expect("the driver is there").len());
    let mut refused = 0;
    for left in (0..16).rev() {
        let (shortage, most) = Shortage::but(left);
        let results = [
            client.channel("p").kind(Kind::Broadcast).publication().map(drop),
            client.channel("s").kind(Kind::Broadcast).subscription().map(drop),
            client.channel("m").kind(Kind::Mpsc).publication().map(drop),
            client.channel("n").kind(Kind::Mpsc).subscription().map(drop),
            connect_to(&role.address).map(drop),
        ];
        neighbours.assert_unharmed();
        drop(shortage);
        for error in results.into_iter().filter_map(Result::err) {
            assert!(matches!(error, Error::FileDescriptors { .. }), "with {left} left: {error:?}");
            assert_says(&error, &["out of file descriptors", "ulimit -n", &most.to_string()]);
            refused += 1;
        }
        until("nothing of it is left", || (descriptors(), client.list().expect("the driver is there").len()) == before);
    }
    assert!(refused >= 5, "with none left, nothing can be had");
    drop(client.publication("p").expect("with descriptors it works"));
    neighbours.assert_unharmed();
    role.say("unharmed");
    role.hold();
}

#[test]
fn a_client_without_descriptors_says_so_and_keeps_what_it_has() {
    let (driver, _client, mut neighbours) = launch();
    let party = Party::start("without descriptors", driver.address(), &[]);
    party.expect("unharmed");
    party.finish();
    neighbours.assert_unharmed();
}

/// Subscribes, and has no descriptors left when the first publisher comes. Argument: kind.
fn without_room_for_links(mut role: Role) {
    limit(libc::RLIMIT_NOFILE, ENOUGH);
    let client = role.client();
    let mut neighbours = Neighbours::of(&client);
    let mut subscription = client.channel("linked").kind(role.argument(0)).subscription().expect("a subscription");
    let (shortage, most) = Shortage::but(0);
    role.say("short");
    let ImageEvent::Failed(reason) = event(&mut subscription) else { panic!("it cannot be connected") };
    assert_says(&reason, &["out of file descriptors", &most.to_string()]);
    neighbours.assert_unharmed();
    drop(shortage);
    role.say("again");
    assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"now");
    role.say("received");
    role.hold();
}

#[test]
fn a_subscription_is_told_of_a_publication_that_it_has_no_descriptors_for() {
    let (driver, client, mut neighbours) = launch();
    for kind in KINDS {
        let party = Party::start("without room for links", driver.address(), &[&kind]);
        party.expect("short");
        let mut unheard = client.publication("linked").expect("a publication");
        party.expect("again");
        assert!(!unheard.is_connected());
        drop(unheard);
        let mut publication = client.publication("linked").expect("a publication");
        connect(&mut publication, 1);
        publication.offer(b"now").expect("room");
        party.expect("received");
        party.finish();
        until("it is gone", || client.list().expect("the driver is there").len() == 3);
    }
    neighbours.assert_unharmed();
}

#[test]
fn a_driver_without_descriptors_says_so_and_serves_whom_it_has() {
    // It takes two for each client: with one more it runs out at the other one.
    for descriptors in [40, 41] {
        let driver = DriverProcess::launch_with(0, descriptors);
        let client = driver.connect();
        let mut neighbours = Neighbours::of(&client);
        let before = driver.party().fds().len();
        let mut clients = Vec::new();
        let error = loop {
            match connect_to(&driver.address) {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
            assert!(clients.len() < 40, "it cannot have that many");
        };
        assert!(clients.len() > 3, "{} only", clients.len());
        let pid = driver.party().pid().to_string();
        // Again and again: it says so and hangs up, perhaps before the client has said anything.
        let more = (0..200).map(|_| connect_to(&driver.address).expect_err("it is full"));
        for error in std::iter::once(error).chain(more) {
            assert!(matches!(error, Error::DriverFull { .. }), "{error:?}");
            assert_says(&error, &["out of file descriptors", "RLIMIT_NOFILE", &pid]);
        }
        // One or two are left.
        let mut more = Vec::new();
        let refused = loop {
            match client.publication(&format!("more/{}", more.len())) {
                Ok(publication) => more.push(publication),
                Err(error) => break refusal::<()>(Err(error)),
            }
            assert!(more.len() < 4, "it cannot have that many");
        };
        assert!(matches!(refused, Refusal::Memory(_)), "{refused}");
        assert_says(&refused, &["Too many open files"]);
        neighbours.assert_unharmed();
        assert_eq!(client.list().expect("it answers").len(), 2 + more.len());
        drop((clients, more));
        until("all is given back", || driver.party().fds().len() == before);
        let other = connect_to(&driver.address).expect("there is room");
        let (mut publication, mut subscription) = pair(&other, "others", Kind::Mpsc, Overflow::Block, SMALLEST);
        assert_works(&mut publication, &mut subscription);
        neighbours.assert_unharmed();
    }
}

#[test]
fn the_driver_s_memory_limit_is_kept_and_what_is_closed_no_longer_counts() {
    let limit = 9 << 19;
    let driver = DriverProcess::launch_with(limit, 0);
    let client = driver.connect();
    let mut neighbours = Neighbours::of(&client);
    for _ in 0..3 {
        let mut rings = Vec::new();
        let refused = loop {
            match client.channel(&format!("ring/{}", rings.len())).capacity(1 << 20).publication() {
                Ok(ring) => rings.push(ring),
                Err(error) => break refusal::<()>(Err(error)),
            }
        };
        assert_eq!(rings.len(), 3, "each is 1 MiB and a bit, and the neighbours are small");
        let Refusal::MemoryLimit { limit: said, left, wanted } = refused else { panic!("{refused}") };
        assert!(said == limit && left < wanted && wanted > 1 << 20 && wanted < 2 << 20, "{refused}");
        assert_says(&refused, &[&limit.to_string(), &left.to_string(), &wanted.to_string(), "--memory-limit"]);
        // What still fits is still had.
        let mut small = pair(&client, "small", Kind::Mpsc, Overflow::Block, SMALLEST);
        assert_works(&mut small.0, &mut small.1);
        neighbours.assert_unharmed();
        drop((rings, small));
        until("all is given back", || client.list().expect("it answers").len() == 2);
    }
}

/// Has little address space, and asks for much. Says when it is done.
fn without_memory(mut role: Role) {
    let client = role.client();
    let mut neighbours = Neighbours::of(&client);
    let before = (fds_of(std::process::id()).len(), client.list().expect("it answers").len());
    let statm = fs::read_to_string("/proc/self/statm").expect("it is mounted");
    let pages: u64 = statm.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    // Room for stacks and heaps, and not for a ring that is mapped twice.
    limit(libc::RLIMIT_AS, (pages * 4096) + (256 << 20));
    for kind in KINDS {
        let channel = || client.channel("large").kind(kind).capacity(256 << 20);
        let result = if kind == Kind::Mpsc { channel().subscription().map(drop) } else { channel().publication().map(drop) };
        let error = result.expect_err("it does not fit");
        assert!(matches!(error, Error::Memory(_)), "{error:?}");
        assert_says(&error, &["memory"]);
        neighbours.assert_unharmed();
        until("nothing of it is left", || (fds_of(std::process::id()).len(), client.list().expect("it answers").len()) == before);
    }
    let mut small = pair(&client, "small", Kind::Spsc, Overflow::Block, SMALLEST);
    assert_works(&mut small.0, &mut small.1);
    role.say("unharmed");
    role.hold();
}

#[test]
fn a_client_without_memory_says_so_and_keeps_what_it_has() {
    let (driver, client, mut neighbours) = launch();
    let party = Party::start("without memory", driver.address(), &[]);
    party.expect("unharmed");
    party.finish();
    until("it is gone", || client.list().expect("it answers").len() == 2);
    neighbours.assert_unharmed();
}

// ---- Drivers that may not start ----

#[test]
fn a_second_driver_at_the_same_place_is_refused_and_told_who_is_there() {
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let mut neighbours = Neighbours::of(&client);
    let error = EmbeddedDriver::launch_with(&Config::new(driver.address.clone())).expect_err("there is one already");
    assert!(matches!(error, DriverError::Listen(_)), "{error:?}");
    assert_says(&error, &["already running", &driver.address.to_string(), &driver.party().pid().to_string(), "--socket"]);
    // Also in a process of its own, as it would be.
    let second = Party::start("driver", &driver.address, &[&0, &0]);
    assert_says(&second.hear(), &["already running", &driver.party().pid().to_string()]);
    second.finish();
    neighbours.assert_unharmed();
    drop(connect_to(&driver.address).expect("the first one is still there"));

    let (abstract_driver, client, mut neighbours) = launch();
    let error = EmbeddedDriver::launch_with(&Config::new(abstract_driver.address().clone())).expect_err("there is one already");
    assert_says(&error, &["already running", &abstract_driver.address().to_string(), &std::process::id().to_string()]);
    neighbours.assert_unharmed();
    drop(client);
}

#[test]
fn the_socket_of_a_dead_driver_is_replaced_and_that_of_a_living_one_removed_at_its_end() {
    let mut driver = DriverProcess::launch();
    driver.kill();
    let Address::Path(path) = driver.address.clone() else { panic!("it has a path") };
    assert!(path.exists(), "it had no time to remove it");
    assert!(matches!(connect_to(&driver.address), Err(Error::NoDriver { .. })));
    let embedded = EmbeddedDriver::launch_with(&Config::new(driver.address.clone())).expect("the place is free");
    let mut neighbours = Neighbours::of(&embedded.connect().expect("a client"));
    neighbours.assert_unharmed();
    drop(embedded);
    assert_eq!(fs::read_dir(driver.directory()).expect("it is ours").count(), 0);
    // It can be started in a directory that does not exist yet.
    let deeper = Address::Path(driver.directory().join("run/ringbus/driver.sock"));
    drop(EmbeddedDriver::launch_with(&Config::new(deeper)).expect("it makes it"));
}

#[test]
fn a_driver_does_not_replace_what_is_no_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("precious");
    fs::write(&path, "data").expect("a file");
    let error = EmbeddedDriver::launch_with(&Config::new(Address::Path(path.clone()))).expect_err("it is a file");
    assert_says(&error, &["precious", "not a socket", "--socket"]);
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "data");
    let left: Vec<_> =
        fs::read_dir(directory.path()).expect("it is ours").filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    assert_eq!(left, ["precious"], "and nothing is left beside it");
}
