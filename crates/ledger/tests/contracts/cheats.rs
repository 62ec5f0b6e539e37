//! Hosts that do not keep what they pledged, and hosts that claim what nobody fetched: `docs/attacks.md` has a row for each test.

use alloy_primitives::{Address, B256, U256};
use assay_chain::scratch::Failure;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_ledger::contracts::{Registry, Retrieval};
use assay_ledger::retrieval::Fetch;

use crate::network::{Actor, DOLLAR, HOST, b, parameters};
use crate::retrieval::{answer, chunks, leaves, model};
use crate::serving::Hosting;

struct Asked {
    epoch: u64,
    chunk: usize,
    until: u64,
}

impl Hosting {
    fn ask(&mut self, host: &Actor, epoch: u64) -> Option<Asked> {
        let (at, host, listing) = (self.n.parts.at.retrieval, host.address, self.author.address);
        let call = Retrieval::questionForCall { host, modelRoot: model(), listing, epoch };
        let question = self.n.chain.read(at, &call).unwrap();
        let (chunk, until) = (question.index as usize, question.until.to());
        question.asked.then_some(Asked { epoch, chunk, until })
    }

    fn draw_and_ask(&mut self, host: &Actor) -> Asked {
        let epoch = self.n.epoch().max(1);
        self.n.draw(epoch);
        self.ask(host, epoch).expect("every pledge is asked here")
    }

    fn try_answer(&mut self, call: Retrieval::answerCall) -> Result<(), Failure> {
        let at = self.n.parts.at.retrieval;
        self.n.send(&Actor::named("anyone"), at, call).map(|_| ())
    }

    fn fail(&mut self, host: &Actor, epoch: u64) -> Result<(), Failure> {
        let (at, host, listing) = (self.n.parts.at.retrieval, host.address, self.author.address);
        let call = Retrieval::proveFailureCall { host, modelRoot: model(), listing, epoch };
        self.n.send(&Actor::named("anyone"), at, call).map(|_| ())
    }
}

#[test]
fn a_host_that_keeps_only_hashes_cannot_answer_and_anyone_slashes_it() {
    let mut h = Hosting::new(1, 0);
    let (host, listing) = (h.hosts[0].clone(), h.author.address);
    let asked = h.draw_and_ask(&host);
    let right = answer(&host, listing, asked.epoch, asked.chunk);
    // It has every hash of the tree and so a right path, and tries what it can make up for the bytes.
    let leaf = leaves()[asked.chunk];
    let shorter = chunks()[asked.chunk][..1023].to_vec();
    for made_up in [vec![], leaf.as_bytes().to_vec(), vec![0; 1024], shorter] {
        let call = Retrieval::answerCall { chunk: made_up.into(), ..right.clone() };
        // A chunk of zeros is the true one where the beacon asks for the first.
        if call.chunk != right.chunk {
            assert!(h.try_answer(call).unwrap_err().is::<Retrieval::BadProof>());
        }
    }
    // Nor does a node pass for a leaf.
    let siblings = [leaves()[0].as_bytes().as_slice(), leaves()[1].as_bytes()].concat();
    let node = Retrieval::answerCall { chunk: siblings.into(), ..right.clone() };
    assert!(h.try_answer(node).unwrap_err().is::<Retrieval::BadProof>());
    h.n.chain.warp(asked.until + 1);
    let before = h.n.node(host.address).stake;
    h.fail(&host, asked.epoch).unwrap();
    assert_eq!(before - h.n.node(host.address).stake, u128::from(h.n.p.stakes.pledgeStake));
    assert_eq!(h.fail(&host, asked.epoch).map_err(|e| e.is::<Retrieval::AlreadyAnswered>()), Err(true));
    h.n.check_money();
}

#[test]
fn another_chunk_a_late_answer_and_a_second_one_are_refused() {
    let mut h = Hosting::new(2, 0);
    let (host, other, listing) = (h.hosts[0].clone(), h.hosts[1].clone(), h.author.address);
    let asked = h.draw_and_ask(&host);
    let right = answer(&host, listing, asked.epoch, asked.chunk);
    // A chunk that it has, with its own path, with the asked one's index, and from a tree of another size.
    let another = answer(&host, listing, asked.epoch, (asked.chunk + 1) % 5);
    assert!(h.try_answer(another.clone()).unwrap_err().is::<Retrieval::WrongChunk>());
    let mut renamed = another.clone();
    renamed.proof.index = asked.chunk as u64;
    assert!(h.try_answer(renamed).is_err());
    let mut swapped = right.clone();
    swapped.chunk = another.chunk;
    assert!(h.try_answer(swapped).unwrap_err().is::<Retrieval::BadProof>());
    let mut resized = right.clone();
    resized.proof.count += 1;
    assert!(h.try_answer(resized).is_err());
    let mut long = right.clone();
    long.chunk = vec![0; 4097].into();
    assert!(h.try_answer(long).unwrap_err().is::<Retrieval::ChunkTooLong>());
    let early = answer(&host, listing, asked.epoch + 1, asked.chunk);
    assert!(h.try_answer(early).is_err(), "no beacon yet");
    // The last second belongs to the answer.
    h.n.chain.warp(asked.until);
    h.try_answer(right.clone()).unwrap();
    assert!(h.try_answer(right).unwrap_err().is::<Retrieval::AlreadyAnswered>());
    h.n.chain.warp(asked.until + 1);
    let question = h.ask(&other, asked.epoch).unwrap();
    let late = answer(&other, listing, question.epoch, question.chunk);
    assert!(h.try_answer(late).unwrap_err().is::<Retrieval::TooLate>());
    assert!(h.fail(&host, asked.epoch).unwrap_err().is::<Retrieval::AlreadyAnswered>());
    h.fail(&other, asked.epoch).unwrap();
}

/// One content of a hundred chunks, and hosts without the last ten. What the contract draws for each, beacon by beacon, against the formula.
#[test]
fn a_host_without_a_tenth_of_the_chunks_is_found_as_often_as_the_formula_says() {
    const CHUNKS: u64 = 100;
    const KEPT: u64 = 90;
    const HOSTS: usize = 200;
    const EPOCHS: usize = 1000;
    let mut p = parameters();
    p.rates.retrievalPpm = assay_ledger::deployment::parameters().rates.retrievalPpm;
    let asked = f64::from(p.rates.retrievalPpm) / 1e6;
    let mut h = Hosting::with(p, 0, 0);
    let (registry, at) = (h.n.parts.at.registry, h.n.parts.at.retrieval);
    let leaves: Vec<Hash> = (0..CHUNKS).map(|i| merkle::leaf(&i.to_be_bytes())).collect();
    let wide: B256 = crate::network::some("wide").into();
    let list = Registry::listCall {
        modelRoot: wide,
        royaltyPpm: 0,
        contentRoot: b(merkle::root(leaves)),
        chunks: CHUNKS,
        manifest: String::new(),
    };
    let (author, listing) = (h.author.clone(), h.author.address);
    h.n.send(&author, registry, list).unwrap();
    let hosts: Vec<Address> = (0..HOSTS)
        .map(|i| {
            let host = h.n.rich(&format!("partial {i}"), 100);
            h.n.enrol(&host, HOST, 50 * DOLLAR);
            let pledge = Retrieval::pledgeCall { host: host.address, modelRoot: wide, listing };
            h.n.send(&host, at, pledge).unwrap();
            host.address
        })
        .collect();
    // The first epoch in which all of them can be asked.
    let first = h.n.epoch() + 1;
    let mut caught: Vec<Vec<bool>> = vec![Vec::new(); HOSTS];
    let (mut questions, mut missing) = (0u32, 0u32);
    for epoch in first..first + EPOCHS as u64 {
        h.n.draw(epoch);
        for (&host, caught) in hosts.iter().zip(&mut caught) {
            let call = Retrieval::questionForCall { host, modelRoot: wide, listing, epoch };
            let question = h.n.chain.read(at, &call).unwrap();
            assert!(question.index < CHUNKS);
            let found = question.asked && question.index >= KEPT;
            caught.push(found);
            questions += u32::from(question.asked);
            missing += u32::from(found);
        }
    }
    let draws = (HOSTS * EPOCHS) as f64;
    let chance = asked * (1.0 - KEPT as f64 / CHUNKS as f64);
    println!("asked in {:.4} of {draws} draws, of {asked}", f64::from(questions) / draws);
    println!("for a chunk that is missing in {:.4}, of {chance:.4}", f64::from(missing) / draws);
    // The draws follow from the test's own chain, so that these numbers do not change: four deviations are for who changes it.
    let near = |seen: f64, share: f64, of: f64| {
        (seen - of * share).abs() <= 4.0 * (of * share * (1.0 - share)).sqrt()
    };
    assert!(near(questions.into(), asked, draws), "{questions} questions");
    assert!(near(missing.into(), chance, draws), "{missing} of them for missing chunks");
    println!("| beacons | caught | of | measured | expected |");
    for n in [1, 5, 10, 20, 50, 100, 200] {
        // Each host's time in runs of n beacons, all of which begin anew.
        let runs: Vec<bool> =
            caught.iter().flat_map(|host| host.chunks(n)).map(|run| run.contains(&true)).collect();
        let (found, of) = (runs.iter().filter(|found| **found).count() as f64, runs.len() as f64);
        let share = 1.0 - (1.0 - chance).powi(n as i32);
        println!("| {n} | {found} | {of} | {:.1} % | {:.1} % |", found / of * 100.0, share * 100.0);
        assert!(near(found, share, of), "{found} of {of} after {n}");
    }
}

/// What no provider signed counts for nothing, and what one signed falsely moves its own fees alone.
#[test]
fn bytes_that_nobody_fetched_take_nothing_of_others_fees() {
    let mut h = Hosting::new(2, 2);
    let (honest, liar) = (h.hosts[0].clone(), h.hosts[1].clone());
    let (provider, accomplice) = (h.providers[0].clone(), h.providers[1].clone());
    let claimed = h.fetch(&provider, &liar, 1 << 40);
    // Signed by itself, and by somebody who is no provider.
    assert!(h.post(&liar, claimed.clone()).unwrap_err().is::<Retrieval::NotSignedByDownloader>());
    let own = Fetch { downloader: liar.address, ..claimed.clone() };
    assert!(h.post(&liar, own).unwrap_err().is::<Retrieval::NotProvider>());
    let nobody = Actor::named("nobody");
    let theirs = Fetch { downloader: nobody.address, ..claimed };
    assert!(h.post(&nobody, theirs).unwrap_err().is::<Retrieval::NotProvider>());
    // An accomplice signs for a great deal; the honest provider for what it fetched.
    h.served(&provider, &honest, 1 << 10);
    h.served(&accomplice, &liar, 1 << 40);
    h.income(&provider, 1_000_000);
    h.income(&accomplice, 10_000);
    assert_eq!(h.collect_served(&honest, &provider), 500_000, "untouched");
    assert_eq!(h.collect_served(&liar, &provider), 0);
    // `fetchedPpm` of what the accomplice's own fees are for hosts: all that can be directed.
    assert_eq!(h.collect_served(&liar, &accomplice), 5_000);
    assert_eq!(h.collect_pool(), [(500_000 + 5_000) / 2; 2], "the other half stays everyone's");
    h.n.check_money();
}

/// Not prevented: the ledger sees two names and cannot see one disk. Both pledge, both answer, both are paid.
#[test]
fn two_names_on_one_disk_are_paid_twice() {
    let mut h = Hosting::new(0, 1);
    let (at, listing, provider) = (h.n.parts.at.retrieval, h.author.address, h.providers[0].clone());
    let disk = chunks();
    let names: Vec<Actor> = ["first name", "second name"].iter().map(|name| h.n.rich(name, 100)).collect();
    let honest = h.n.rich("one name", 100);
    for host in names.iter().chain([&honest]) {
        h.n.enrol(host, HOST, 50 * DOLLAR);
        let pledge = Retrieval::pledgeCall { host: host.address, modelRoot: model(), listing };
        h.n.send(host, at, pledge).unwrap();
    }
    h.income(&provider, 900_000);
    let epoch = h.n.epoch().max(1);
    h.n.draw(epoch);
    let mut paid = Vec::new();
    for host in names.iter().chain([&honest]) {
        let asked = h.ask(host, epoch).unwrap();
        let mut call = answer(host, listing, epoch, asked.chunk);
        call.chunk = disk[asked.chunk].clone().into();
        h.try_answer(call).unwrap();
        let before = h.n.balance(host.address);
        let collect = Retrieval::collectCall { host: host.address, modelRoot: model(), listing };
        h.n.send(host, at, collect).unwrap();
        paid.push(h.n.balance(host.address) - before);
    }
    // Two thirds for one disk: what it costs is a second stake, and questions for both names.
    assert_eq!(paid, [300_000; 3]);
    let reserved: U256 = names.iter().map(|host| U256::from(h.n.node(host.address).reserved)).sum();
    assert_eq!(reserved, U256::from(2 * h.n.p.stakes.pledgeStake));
}
