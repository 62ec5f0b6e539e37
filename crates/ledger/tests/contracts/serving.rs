//! Fetch receipts: what they are worth, what is refused, and that every part of a unit has an owner.

use alloy_primitives::{Address, B256, Bytes, U256};
use assay_chain::scratch::{CHAIN_ID, Done, Failure, Scratch};
use assay_core::merkle;
use assay_ledger::contracts::{Directory, Registry, Retrieval, Vault};
use assay_ledger::retrieval::{self, FETCHED_BYTES_MAX, Fetch};

use crate::network::{Actor, DOLLAR, HOST, Network, PROVIDER, START, b, parameters};
use crate::properties::PARTS_BITS;
use crate::retrieval::{answer, leaves, model, pledge, release};

/// A listed model, hosts that keep it, and providers that pay them.
pub struct Hosting {
    pub n: Network,
    pub author: Actor,
    pub hosts: Vec<Actor>,
    pub providers: Vec<Actor>,
}

impl Hosting {
    pub fn new(hosts: usize, providers: usize) -> Hosting {
        Self::with(parameters(), hosts, providers)
    }

    pub fn with(p: Directory::Parameters, hosts: usize, providers: usize) -> Hosting {
        let mut n = Network::with(p, 0);
        let registry = n.parts.at.registry;
        let author = n.rich("author", 0);
        n.rich("anyone", 0);
        let list = Registry::listCall {
            modelRoot: model(),
            royaltyPpm: 0,
            contentRoot: b(merkle::root(leaves())),
            chunks: 5,
            manifest: String::new(),
        };
        n.send(&author, registry, list).unwrap();
        let hosts: Vec<Actor> = (0..hosts).map(|i| n.rich(&format!("host {i}"), 100)).collect();
        for host in &hosts {
            n.enrol(host, HOST, 60 * DOLLAR);
            pledge(&mut n, host, author.address).unwrap();
        }
        let providers: Vec<Actor> = (0..providers).map(|i| n.rich(&format!("provider {i}"), 100)).collect();
        for provider in &providers {
            n.enrol(provider, PROVIDER, 10 * DOLLAR);
        }
        Hosting { n, author, hosts, providers }
    }

    pub fn fetch(&self, downloader: &Actor, host: &Actor, bytesFetched: u64) -> Fetch {
        let (downloader, host, listing) = (downloader.address, host.address, self.author.address);
        Fetch { downloader, host, modelRoot: model(), listing, bytesFetched }
    }

    /// Posts a receipt that `signer` signed.
    pub fn post(&mut self, signer: &Actor, fetch: Fetch) -> Result<Done<Retrieval::servedReturn>, Failure> {
        let at = self.n.parts.at.retrieval;
        let signature = signer.sign(retrieval::fetch_hash(&fetch, &retrieval::domain(CHAIN_ID, at)));
        self.n.send(&Actor::named("anyone"), at, Retrieval::servedCall { fetch, signature })
    }

    pub fn served(&mut self, downloader: &Actor, host: &Actor, bytes: u64) {
        let fetch = self.fetch(downloader, host, bytes);
        self.post(downloader, fetch).unwrap();
    }

    /// The hosts' part of a provider's fees arrives. The vault's balance is as if it had been released from an epoch.
    pub fn income(&mut self, provider: &Actor, amount: u64) -> u64 {
        self.income_of(provider, self.author.address, amount)
    }

    pub fn income_of(&mut self, provider: &Actor, listing: Address, amount: u64) -> u64 {
        let at = self.n.parts.at.clone();
        let vault = at.vault;
        let payer = self.n.rich("fees", amount.div_ceil(DOLLAR));
        self.n.accounts.sort_unstable();
        self.n.accounts.dedup();
        // A part moves balances; which part gave it does not matter to the one that gets it.
        let take = Vault::takeCall { from: payer.address, amount: U256::from(amount) };
        self.n.send_from(at.epochs, vault, take).unwrap();
        let give = Vault::giveCall { to: at.retrieval, amount: U256::from(amount) };
        self.n.send_from(at.epochs, vault, give).unwrap();
        let (provider, amount) = (provider.address, U256::from(amount));
        let call = Retrieval::incomeCall { provider, modelRoot: model(), listing, amount };
        self.n.send_from(at.epochs, at.retrieval, call).unwrap().gas
    }

    pub fn collect_served(&mut self, host: &Actor, provider: &Actor) -> u64 {
        let at = self.n.parts.at.retrieval;
        let before = self.n.balance(host.address);
        let call = Retrieval::collectServedCall {
            host: host.address,
            modelRoot: model(),
            listing: self.author.address,
            provider: provider.address,
        };
        self.n.send(&Actor::named("anyone"), at, call).unwrap();
        self.n.balance(host.address) - before
    }

    /// Everyone answers the next beacon, and collects. What each has got of the pool.
    pub fn collect_pool(&mut self) -> Vec<u64> {
        let (at, listing) = (self.n.parts.at.retrieval, self.author.address);
        let epoch = self.n.epoch().max(1);
        self.n.draw(epoch);
        let hosts = self.hosts.clone();
        let mut got = Vec::new();
        for host in &hosts {
            let (host_, modelRoot) = (host.address, model());
            let question = Retrieval::questionForCall { host: host_, modelRoot, listing, epoch };
            let index = self.n.chain.read(at, &question).unwrap().index as usize;
            self.n.send(host, at, answer(host, listing, epoch, index)).unwrap();
            let before = self.n.balance(host.address);
            let collect = Retrieval::collectCall { host: host_, modelRoot, listing };
            self.n.send(host, at, collect).unwrap();
            got.push(self.n.balance(host.address) - before);
        }
        got
    }

    pub fn sources(&mut self, provider: &Actor) -> Retrieval::Sources {
        let (at, provider) = (self.n.parts.at.retrieval, provider.address);
        let call = Retrieval::sourcesOfCall { modelRoot: model(), listing: self.author.address, provider };
        self.n.chain.read(at, &call).unwrap()
    }
}

#[test]
fn receipts_hash_as_the_contract_says() {
    let mut h = Hosting::new(1, 1);
    let at = h.n.parts.at.retrieval;
    let domain = retrieval::domain(CHAIN_ID, at);
    for bytesFetched in [0, 1, 4_368_439_584, FETCHED_BYTES_MAX, u64::MAX] {
        let fetch = h.fetch(&h.providers[0].clone(), &h.hosts[0].clone(), bytesFetched);
        let said = h.n.chain.read(at, &Retrieval::fetchHashCall { fetch: fetch.clone() }).unwrap();
        assert_eq!(said, retrieval::fetch_hash(&fetch, &domain));
    }
    let most = h.n.chain.read(at, &Retrieval::FETCHED_BYTES_MAXCall {}).unwrap();
    assert_eq!(most, FETCHED_BYTES_MAX);
    let chunk = h.n.chain.read(at, &Retrieval::CHUNK_BYTES_MAXCall {}).unwrap();
    assert_eq!(chunk.to::<usize>(), retrieval::CHUNK_BYTES_MAX);
}

#[test]
pub fn a_part_of_a_providers_fees_goes_to_whom_it_fetched_from() {
    let mut h = Hosting::new(3, 2);
    let (a, idle, c) = (h.hosts[0].clone(), h.hosts[1].clone(), h.hosts[2].clone());
    let (p, q) = (h.providers[0].clone(), h.providers[1].clone());
    // Without a receipt everything is the pool's.
    h.income(&p, 300_000);
    h.served(&p, &a, 3 << 10);
    h.served(&p, &c, 1 << 10);
    h.income(&p, 400_000);
    // Another provider's fees do not follow what this one fetched.
    h.income(&q, 300_000);
    assert_eq!(h.collect_served(&a, &p), 150_000);
    assert_eq!(h.collect_served(&c, &p), 50_000);
    assert_eq!(h.collect_served(&idle, &p), 0);
    assert_eq!(h.collect_served(&a, &q), 0);
    // Income before a receipt is not shared again; a later receipt counts from then on.
    h.served(&p, &c, 5 << 10);
    h.income(&p, 100_000);
    assert_eq!((h.collect_served(&a, &p), h.collect_served(&c, &p)), (18_750, 31_250));
    let pool = (300_000 + 200_000 + 300_000 + 50_000) / 3;
    assert_eq!(h.collect_pool(), [pool; 3]);
    h.n.check_money();
}

/// The same by the way that fees come: earned by voucher, posted, settled and released.
#[test]
pub fn fees_of_an_epoch_are_released_to_whom_the_provider_fetched_from() {
    let mut h = Hosting::new(2, 2);
    let (hosts, p, other) = (h.hosts.clone(), h.providers[0].clone(), h.providers[1].clone());
    h.served(&p, &hosts[1], 1 << 20);
    h.served(&other, &hosts[0], 1 << 20);
    let author = h.author.clone();
    let part = release(&mut h.n, &author, &p);
    assert_eq!(part, 60_000);
    assert_eq!((h.collect_served(&hosts[0], &p), h.collect_served(&hosts[0], &other)), (0, 0));
    assert_eq!(h.collect_served(&hosts[1], &p), part / 2);
    assert_eq!(h.collect_pool(), [part / 4; 2]);
    h.n.check_money();
}

#[test]
fn what_does_not_divide_is_owed_to_the_last_part_of_a_unit() {
    let mut h = Hosting::new(3, 1);
    let (hosts, p) = (h.hosts.clone(), h.providers[0].clone());
    for (host, bytes) in hosts.iter().zip([1, 3, 7]) {
        h.served(&p, host, bytes);
    }
    let (mut income, mut paid) = (0u64, 0u64);
    for amount in [1, 2, 1, 1_000_001, 6, 999_999] {
        h.income(&p, amount);
        // Rounded down for each amount by itself.
        income += amount / 2;
        for host in &hosts[..2] {
            paid += h.collect_served(host, &p);
        }
    }
    paid += h.collect_served(&hosts[2], &p);
    let mut left = u128::from(h.sources(&p).dust);
    for host in &hosts {
        let at = h.n.parts.at.retrieval;
        let (host, listing, provider) = (host.address, h.author.address, p.address);
        let call = Retrieval::sourceOfCall { host, modelRoot: model(), listing, provider };
        let source = h.n.chain.read(at, &call).unwrap();
        assert!(source.earned < 1 << PARTS_BITS, "less than a unit is left with each");
        left += source.earned;
    }
    assert_eq!(u128::from(income - paid) << PARTS_BITS, left);
    assert!(income - paid <= 3, "{}", income - paid);
}

#[test]
pub fn a_receipt_counts_once_and_only_what_is_new_of_it() {
    let mut h = Hosting::new(2, 1);
    let (a, c, p) = (h.hosts[0].clone(), h.hosts[1].clone(), h.providers[0].clone());
    h.served(&p, &a, 500);
    for bytes in [500, 499, 1, 0] {
        let fetch = h.fetch(&p, &a, bytes);
        assert!(h.post(&p, fetch).unwrap_err().is::<Retrieval::NothingNew>());
    }
    h.served(&p, &a, 1 << 10);
    h.served(&p, &c, 1 << 10);
    assert_eq!(h.sources(&p).bytesFetched, 2 << 10);
    h.income(&p, 2_000);
    assert_eq!((h.collect_served(&a, &p), h.collect_served(&c, &p)), (500, 500));
    assert_eq!((h.collect_served(&a, &p), h.collect_served(&c, &p)), (0, 0), "paid once");
}

#[test]
fn bytes_have_a_limit_over_all_hosts() {
    let mut h = Hosting::new(2, 1);
    let (a, c, p) = (h.hosts[0].clone(), h.hosts[1].clone(), h.providers[0].clone());
    for bytes in [FETCHED_BYTES_MAX + 1, u64::MAX] {
        let fetch = h.fetch(&p, &a, bytes);
        assert!(h.post(&p, fetch).unwrap_err().is::<Retrieval::TooManyBytes>());
    }
    h.served(&p, &a, FETCHED_BYTES_MAX - 1);
    let beyond = h.fetch(&p, &c, 2);
    assert!(h.post(&p, beyond).unwrap_err().is::<Retrieval::TooManyBytes>());
    h.served(&p, &c, 1);
    // The largest sum divides the smallest income, and the largest that a share can be: nothing overflows, nothing is lost.
    h.income(&p, 2);
    h.income(&p, 1 << 60);
    let parts = ((1u128 + (1 << 59)) << PARTS_BITS) - u128::from(h.sources(&p).dust);
    let each = parts / u128::from(FETCHED_BYTES_MAX);
    let owed = |bytes: u64| ((each * u128::from(bytes)) >> PARTS_BITS) as u64;
    assert_eq!(h.collect_served(&a, &p), owed(FETCHED_BYTES_MAX - 1));
    assert_eq!(h.collect_served(&c, &p), owed(1));
}

#[test]
fn who_cannot_say_so_is_refused() {
    let mut h = Hosting::new(1, 2);
    let (host, p, other) = (h.hosts[0].clone(), h.providers[0].clone(), h.providers[1].clone());
    let fetch = h.fetch(&p, &host, 1_000);
    // Another key, the host's own, none, and another form.
    for signer in [&other, &host, &Actor::named("nobody")] {
        assert!(h.post(signer, fetch.clone()).unwrap_err().is::<Retrieval::NotSignedByDownloader>());
    }
    let at = h.n.parts.at.retrieval;
    let good = p.sign(retrieval::fetch_hash(&fetch, &retrieval::domain(CHAIN_ID, at)));
    let small = [&good[..64], &[good[64] - 27]].concat();
    for signature in [Bytes::new(), vec![0; 65].into(), Bytes::from(small), good.slice(..64)] {
        let call = Retrieval::servedCall { fetch: fetch.clone(), signature };
        let refused = h.n.send(&p, at, call).unwrap_err();
        assert!(refused.is::<Retrieval::NotSignedByDownloader>());
    }
    // Any other field under the same signature.
    let forged = [
        Fetch { bytesFetched: 1_001, ..fetch.clone() },
        Fetch { downloader: other.address, ..fetch.clone() },
    ];
    for forged in forged {
        let call = Retrieval::servedCall { fetch: forged, signature: good.clone() };
        assert!(h.n.send(&p, at, call).unwrap_err().is::<Retrieval::NotSignedByDownloader>());
    }
    // Receipts of another deployment or chain.
    for domain in [retrieval::domain(CHAIN_ID + 1, at), retrieval::domain(CHAIN_ID, p.address)] {
        let signature = p.sign(retrieval::fetch_hash(&fetch, &domain));
        let call = Retrieval::servedCall { fetch: fetch.clone(), signature };
        assert!(h.n.send(&p, at, call).unwrap_err().is::<Retrieval::NotSignedByDownloader>());
    }
    // Not a provider: nobody, and a host.
    for who in [Actor::named("nobody"), host.clone()] {
        let fetch = h.fetch(&who, &host, 1_000);
        assert!(h.post(&who, fetch).unwrap_err().is::<Retrieval::NotProvider>());
    }
    // A provider that was struck.
    let (registry, disputes) = (h.n.parts.at.registry, h.n.disputes.clone());
    let strike = Registry::strikeCall { node: other.address, reporter: p.address };
    h.n.send(&disputes, registry, strike).unwrap();
    let struck = h.fetch(&other, &host, 1_000);
    assert!(h.post(&other, struck).unwrap_err().is::<Retrieval::NotProvider>());
    // Another listing or model, and a host without a pledge.
    let elsewhere = [
        Fetch { listing: p.address, ..fetch.clone() },
        Fetch { modelRoot: B256::repeat_byte(1), ..fetch.clone() },
        Fetch { host: other.address, ..fetch.clone() },
    ];
    for fetch in elsewhere {
        assert!(h.post(&p, fetch).unwrap_err().is::<Retrieval::NotPledged>());
    }
    let unpledge =
        Retrieval::unpledgeCall { host: host.address, modelRoot: model(), listing: h.author.address };
    h.n.send(&host, at, unpledge).unwrap();
    assert!(h.post(&p, fetch).unwrap_err().is::<Retrieval::NotPledged>());
    assert_eq!(h.sources(&p).bytesFetched, 0);
    // Income is the epochs contract's to bring.
    let income = Retrieval::incomeCall {
        provider: p.address,
        modelRoot: model(),
        listing: h.author.address,
        amount: U256::from(1),
    };
    assert!(h.n.send(&p, at, income).unwrap_err().is::<Retrieval::NotAuthorised>());
}

#[test]
pub fn bytes_that_were_served_stay_counted_when_the_pledge_ends() {
    let mut h = Hosting::new(2, 1);
    let (gone, kept, p) = (h.hosts[0].clone(), h.hosts[1].clone(), h.providers[0].clone());
    h.served(&p, &gone, 128);
    h.served(&p, &kept, 128);
    let at = h.n.parts.at.retrieval;
    let (modelRoot, listing) = (model(), h.author.address);
    h.n.send(&gone, at, Retrieval::unpledgeCall { host: gone.address, modelRoot, listing }).unwrap();
    h.income(&p, 4_000);
    assert_eq!((h.collect_served(&gone, &p), h.collect_served(&kept, &p)), (1_000, 1_000));
    // The pool is of those that keep the content.
    h.hosts = vec![kept];
    assert_eq!(h.collect_pool(), [2_000]);
    assert_eq!(h.n.balance(at), 0);
}

#[test]
fn the_part_that_follows_bytes_is_a_number_of_the_deployment() {
    for (ppm, fetched) in [(0, 0), (1_000_000, 10_000), (333_333, 3_333)] {
        let mut p = parameters();
        p.split.fetchedPpm = ppm;
        let mut h = Hosting::with(p, 1, 1);
        let (host, provider) = (h.hosts[0].clone(), h.providers[0].clone());
        h.served(&provider, &host, 7);
        h.income(&provider, 10_000);
        // 7 bytes do not divide every income; what is left is less than a unit.
        let got = h.collect_served(&host, &provider);
        assert!(got == fetched || got + 1 == fetched, "{got} of {fetched}");
        assert_eq!(h.collect_pool(), [10_000 - fetched]);
    }
    let mut p = parameters();
    p.split.fetchedPpm = 1_000_001;
    let mut chain = Scratch::new(START);
    let deployer = Actor::named("deployer").address;
    let token = crate::deployed::deploy_test_token(&mut chain, deployer, 0).unwrap();
    let refused = crate::deployed::deploy(&mut chain, deployer, token, Address::repeat_byte(7), None, p);
    assert!(refused.unwrap_err().is::<Directory::BadParameter>());
}

/// `income` is part of every release: it may cost a read more, and a write where bytes were served.
#[test]
fn income_stays_cheap() {
    let mut h = Hosting::new(1, 1);
    let (host, p) = (h.hosts[0].clone(), h.providers[0].clone());
    h.income(&p, 10_000);
    let without = h.income(&p, 10_000);
    h.served(&p, &host, 1_000_003);
    h.income(&p, 10_000);
    let with = h.income(&p, 10_000);
    println!("| income, called alone | {without} without sources | {with} with |");
    assert!(with - without < 6_000, "{without} and {with}");
}
