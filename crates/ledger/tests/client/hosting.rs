//! Listings, pledges, questions and fetch receipts: what host daemons and publishers do, and do again after a crash.

use alloy_primitives::{Address, B256};
use assay_core::id::{Hash, ModelRoot};
use assay_core::merkle;
use assay_ledger::amount::Amount;
use assay_ledger::contracts::{Registry, Retrieval, b256};
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::retrieval::{
    self, Content, Fetch, ListingId, Names, Once, Open, PledgeId, PublishError, Question, Questions, Roll,
    Time,
};
use assay_ledger::sender::{SendError, Sender};
use serde_json::json;

use crate::chains::{DOLLAR, Node, on_both, parameters};

const CHUNKS: usize = 5;

fn chunk(i: usize) -> Vec<u8> {
    vec![u8::try_from(i).unwrap() + 1; if i + 1 == CHUNKS { 100 } else { retrieval::CHUNK_BYTES_MAX }]
}

fn leaves() -> Vec<Hash> {
    (0..CHUNKS).map(|i| merkle::leaf(&chunk(i))).collect()
}

fn content() -> Content {
    Content { root: merkle::root(leaves()), chunks: CHUNKS as u64 }
}

fn model(name: &str) -> ModelRoot {
    ModelRoot::from_bytes(crate::chains::hash(name).0)
}

fn refused<E: alloy_sol_types::SolError, T: std::fmt::Debug>(result: Result<T, SendError>) {
    let SendError::Reverted { reason, .. } = result.unwrap_err() else {
        panic!("not refused by the contract")
    };
    assert!(reason.is::<E>(), "{reason}");
}

/// A ledger on which every pledge is asked.
async fn ledger(node: &Node) -> Ledger {
    let mut p = parameters();
    p.rates.retrievalPpm = 1_000_000;
    node.deploy(p).await
}

/// Somebody with a node of its own name and a stake.
async fn enrolled(node: &Node, ledger: &Ledger, name: &str, role: Role, dollars: u64) -> Sender {
    let sender = node.member(ledger, name).await;
    let (key, amount) = (sender.key().clone(), Amount(u128::from(dollars * DOLLAR)));
    let endpoint = format!("https://{name}.example");
    ledger.enrol(&sender, &key, role as u8, endpoint, B256::ZERO).await.unwrap();
    ledger.deposit(&sender, amount).await.unwrap();
    ledger.stake(&sender, key.address(), amount).await.unwrap();
    sender
}

async fn publish(ledger: &Ledger, author: &Sender, name: &str) -> ListingId {
    let done = ledger.publish(author, model(name), 1_000, Some(content()), name.into()).await.unwrap();
    assert!(matches!(done, Once::Now(_)));
    ListingId { model: model(name), owner: author.account() }
}

#[test]
fn a_listing_is_made_once_and_its_content_stays() {
    on_both(async |node| {
        let ledger = ledger(&node).await;
        let author = node.member(&ledger, "author").await;
        let id = ListingId { model: model("small"), owner: author.account() };
        assert_eq!(ledger.listing(id).await.unwrap(), None);
        assert!(ledger.listings().await.unwrap().is_empty());
        // First without content, then with it; each once.
        let list = async |ppm, content, manifest: &str| {
            ledger.publish(&author, id.model, ppm, content, manifest.into()).await
        };
        assert!(matches!(list(1_000, None, "").await, Ok(Once::Now(_))));
        assert_eq!(ledger.listing(id).await.unwrap().unwrap().content, None);
        assert!(matches!(list(1_000, None, "").await, Ok(Once::Before)));
        assert!(matches!(list(1_000, Some(content()), "").await, Ok(Once::Now(_))));
        assert!(matches!(list(1_000, Some(content()), "").await, Ok(Once::Before)));
        // Who does not name the content does not take it away.
        assert!(matches!(list(1_000, None, "").await, Ok(Once::Before)));
        assert!(matches!(list(900, Some(content()), "manifest").await, Ok(Once::Now(_))));
        let other = Content { chunks: 6, ..content() };
        let error = list(900, Some(other), "manifest").await.unwrap_err();
        assert_eq!(error.code(), "listing_content_stays");
        assert!(error.to_string().contains("of 6 chunks"), "{error}");
        let PublishError::Send(error) = list(901, None, "manifest").await.unwrap_err() else { panic!() };
        refused::<Registry::RoyaltyTooHigh, ()>(Err(error));
        let found = ledger.listing(id).await.unwrap().unwrap();
        assert_eq!(
            (found.royalty_ppm, found.content, found.manifest.as_str()),
            (900, Some(content()), "manifest")
        );
        // One entry for each owner and model, the newest, wherever it was logged.
        let second = node.member(&ledger, "second author").await;
        let other = publish(&ledger, &second, "small").await;
        let listings = ledger.listings().await.unwrap();
        assert_eq!(listings.len(), 2);
        assert!(listings.contains(&found) && listings.iter().any(|l| l.id == other));
    });
}

#[test]
fn a_host_pledges_answers_and_goes_and_may_say_everything_twice() {
    on_both(async |node| {
        let ledger = ledger(&node).await;
        let author = node.member(&ledger, "author").await;
        let listing = publish(&ledger, &author, "small").await;
        assert!(ledger.hosts().await.unwrap().is_empty());
        let host = enrolled(&node, &ledger, "host", Role::Host, 60).await;
        let silent = enrolled(&node, &ledger, "silent", Role::Host, 60).await;
        // A provider becomes a host later; another one never does.
        let late = enrolled(&node, &ledger, "late", Role::Provider, 10).await;
        enrolled(&node, &ledger, "provider", Role::Provider, 10).await;
        let add = Registry::addRolesCall { node: late.account(), roles: Role::Host as u8 };
        late.send("add a role", ledger.parts().at.registry, &add).await.unwrap();
        let hosts = ledger.hosts().await.unwrap();
        assert_eq!(hosts.len(), 3);
        let found = hosts.iter().find(|h| h.node == host.account()).unwrap();
        assert_eq!((found.owner, found.endpoint.as_str()), (host.account(), "https://host.example"));
        assert_eq!((found.stake, found.reserved, found.struck), (Amount(60_000_000), Amount(0), false));
        assert!(found.heartbeat > 0 && found.heartbeat <= node.now().await);

        let id = PledgeId { host: host.account(), listing };
        let nothing = PledgeId { listing: ListingId { model: model("other"), ..listing }, ..id };
        refused::<Retrieval::NothingToHost, _>(ledger.pledge(&host, nothing).await);
        refused::<Retrieval::NotNode, _>(ledger.pledge(&author, id).await);
        assert!(matches!(ledger.pledge(&host, id).await, Ok(Once::Now(_))));
        assert!(matches!(ledger.pledge(&host, id).await, Ok(Once::Before)));
        let fails = PledgeId { host: silent.account(), ..id };
        assert!(matches!(ledger.pledge(&silent, fails).await, Ok(Once::Now(_))));
        let pledges = ledger.pledges(listing).await.unwrap();
        assert_eq!(pledges.len(), 2);
        assert!(pledges.iter().all(|p| p.since == 1 && p.earned == Amount(0) && p.unconfirmed == Amount(0)));
        assert!(ledger.pledges(nothing.listing).await.unwrap().is_empty());

        // Not asked for the epoch in which it pledged, then asked for one chunk.
        assert_eq!(ledger.question(id, 1).await.unwrap(), Question::Pending);
        assert_eq!(node.draw(&ledger, &author).await, 0);
        assert_eq!(ledger.question(id, 0).await.unwrap(), Question::NotAsked);
        let epoch = node.draw(&ledger, &author).await;
        let Question::Asked { chunk: index, until } = ledger.question(id, epoch).await.unwrap() else {
            panic!("asked")
        };
        let index = usize::try_from(index).unwrap();
        let proof = |i| merkle::prove(&leaves(), i).unwrap();
        let other = (index + 1) % CHUNKS;
        refused::<Retrieval::WrongChunk, _>(
            ledger.answer(&author, id, epoch, chunk(other), &proof(other)).await,
        );
        refused::<Retrieval::BadProof, _>(
            ledger.answer(&author, id, epoch, chunk(other), &proof(index)).await,
        );
        refused::<Retrieval::TooSoon, _>(ledger.prove_failure(&author, fails, epoch).await);
        // Anyone answers for it.
        let right = async || ledger.answer(&author, id, epoch, chunk(index), &proof(index)).await;
        assert!(matches!(right().await, Ok(Once::Now(_))));
        assert!(matches!(right().await, Ok(Once::Before)));
        assert_eq!(ledger.question(id, epoch).await.unwrap(), Question::Closed);
        assert!(matches!(ledger.collect_hosting(&author, id).await, Ok(Once::Before)), "nothing was earned");

        // Silence is shown by anyone, once.
        let mut roll = ledger.roll().await.unwrap();
        let mut questions = Questions::default();
        let open = questions.open(&roll, 0..=epoch + 1).await.unwrap();
        let asked = |open: &[Open]| open.iter().map(|o| (o.pledge, o.epoch, o.time)).collect::<Vec<_>>();
        assert_eq!(asked(&open), [(fails, epoch, Time::Left)]);
        node.advance(until - node.now().await + 1).await;
        roll.update().await.unwrap();
        let open = questions.open(&roll, 0..=epoch + 1).await.unwrap();
        assert_eq!(asked(&open), [(fails, epoch, Time::Over)]);
        assert_eq!(roll.failures().count(), 0);
        let has = ledger.holdings(author.account()).await.unwrap().vault;
        assert!(matches!(ledger.prove_failure(&author, fails, epoch).await, Ok(Once::Now(_))));
        assert!(matches!(ledger.prove_failure(&author, fails, epoch).await, Ok(Once::Before)));
        let stakes = &ledger.parameters().stakes;
        let part = stakes.pledgeStake * u64::from(ledger.parameters().split.reporterPpm) / 1_000_000;
        let now = ledger.holdings(author.account()).await.unwrap().vault;
        assert_eq!(now.0 - has.0, u128::from(part));
        // Until the roll has read so far, it stands as it was.
        assert_eq!(questions.open(&roll, epoch..=epoch).await.unwrap().len(), 1);
        roll.update().await.unwrap();
        assert!(questions.open(&roll, 0..=epoch + 1).await.unwrap().is_empty());
        assert_eq!(ledger.question(id, epoch).await.unwrap(), Question::Closed);
        assert_eq!(roll.failures().collect::<Vec<_>>(), [fails]);
        assert_eq!(roll.pledges_of(silent.account()).await.unwrap(), []);
        assert_eq!(roll.pledges(listing).await.unwrap().len(), 1);

        assert!(matches!(ledger.unpledge(&host, id).await, Ok(Once::Now(_))));
        assert!(matches!(ledger.unpledge(&host, id).await, Ok(Once::Before)));
        assert_eq!(ledger.pledge_of(id).await.unwrap(), None);
        assert!(ledger.pledges(listing).await.unwrap().is_empty());
        // The last epochs of a pledge can still be asked about: a new one has to wait.
        refused::<Retrieval::AlreadyPledged, _>(ledger.pledge(&host, id).await);
    });
}

#[test]
fn fetch_receipts_are_posted_by_anyone_and_count_once() {
    on_both(async |node| {
        let ledger = ledger(&node).await;
        let author = node.member(&ledger, "author").await;
        let listing = publish(&ledger, &author, "small").await;
        let host = enrolled(&node, &ledger, "host", Role::Host, 60).await;
        let provider = enrolled(&node, &ledger, "provider", Role::Provider, 10).await;
        let id = PledgeId { host: host.account(), listing };
        let fetch = Fetch {
            downloader: provider.account(),
            host: id.host,
            modelRoot: b256(&Hash::from_bytes(*listing.model.as_bytes())),
            listing: listing.owner,
            bytesFetched: 4_096,
        };
        let domain = ledger.retrieval_domain();
        let signed = |fetch: &Fetch| retrieval::sign(provider.key(), fetch, &domain).unwrap();
        refused::<Retrieval::NotPledged, _>(ledger.post_fetch(&host, &fetch, signed(&fetch)).await);
        ledger.pledge(&host, id).await.unwrap();
        let wrong = Fetch { bytesFetched: 4_097, ..fetch.clone() };
        assert!(retrieval::check(&wrong, &signed(&fetch), &domain).is_err());
        refused::<Retrieval::NotSignedByDownloader, _>(
            ledger.post_fetch(&host, &wrong, signed(&fetch)).await,
        );
        let own = Fetch { downloader: host.account(), ..fetch.clone() };
        let by_itself = retrieval::sign(host.key(), &own, &domain).unwrap();
        refused::<Retrieval::NotProvider, _>(ledger.post_fetch(&host, &own, by_itself).await);
        assert!(matches!(ledger.post_fetch(&author, &fetch, signed(&fetch)).await, Ok(Once::Now(_))));
        assert!(matches!(ledger.post_fetch(&author, &fetch, signed(&fetch)).await, Ok(Once::Before)));
        let less = Fetch { bytesFetched: 1, ..fetch.clone() };
        assert!(matches!(ledger.post_fetch(&host, &less, signed(&less)).await, Ok(Once::Before)));
        let served = ledger.served(id, provider.account()).await.unwrap();
        assert_eq!((served.bytes, served.owed), (4_096, Amount(0)));
        let collected = ledger.collect_served(&host, id, provider.account()).await;
        assert!(matches!(collected, Ok(Once::Before)), "there were no fees");
        // What was counted stays when the pledge has ended.
        ledger.unpledge(&host, id).await.unwrap();
        assert_eq!(ledger.roll().await.unwrap().served(host.account()).await.unwrap(), [served]);
        let more = Fetch { bytesFetched: 8_192, ..fetch };
        refused::<Retrieval::NotPledged, _>(ledger.post_fetch(&host, &more, signed(&more)).await);
    });
}

#[test]
fn a_roll_goes_on_where_it_was_stored_and_forgets_what_was_taken_back() {
    on_both(async |node| {
        let ledger = ledger(&node).await;
        let author = node.member(&ledger, "author").await;
        let listing = publish(&ledger, &author, "small").await;
        let host = enrolled(&node, &ledger, "host", Role::Host, 60).await;
        let id = PledgeId { host: host.account(), listing };
        let mut roll = Roll::begin(ledger.clone()).await.unwrap();
        assert!(roll.hosts().await.unwrap().is_empty(), "nothing was read yet");
        roll.update().await.unwrap();
        let fork = node.ask("evm_snapshot", json!([])).await;
        ledger.pledge(&host, id).await.unwrap();
        publish(&ledger, &author, "second").await;
        roll.update().await.unwrap();
        assert_eq!(
            (roll.pledges(listing).await.unwrap().len(), roll.listings().await.unwrap().len()),
            (1, 2)
        );
        let stored = serde_json::to_string(roll.names()).unwrap();

        // Another branch without them, and a long time of which nobody reads the blocks one by one.
        node.ask("evm_revert", json!([fork])).await;
        node.advance(10).await;
        let names: Names = serde_json::from_str(&stored).unwrap();
        let mut roll = Roll::resume(ledger.clone(), names).await.unwrap();
        assert!(roll.pledges(listing).await.unwrap().is_empty(), "every number is the chain's of now");
        roll.update().await.unwrap();
        assert_eq!((roll.hosts().await.unwrap().len(), roll.listings().await.unwrap().len()), (1, 1));
        node.mine(1_500).await;
        let third = publish(&ledger, &author, "third").await;
        node.mine(100).await;
        roll.update().await.unwrap();
        assert!(roll.listings().await.unwrap().iter().any(|l| l.id == third));
        assert_eq!(roll.names().cursor.next(), node.client.head().await.unwrap() + 1);
        // Who begins now finds the same.
        assert_eq!(ledger.roll().await.unwrap().listings().await.unwrap(), roll.listings().await.unwrap());
        // The deployment's first block is found, so that nobody reads the chain before it.
        let first = ledger.first_block().await.unwrap();
        let code = async |block: u64| {
            use alloy_provider::Provider as _;
            let at: Address = ledger.parts().directory;
            node.client.provider().get_code_at(at).block_id(block.into()).await.unwrap()
        };
        assert!(!code(first).await.is_empty() && code(first - 1).await.is_empty());
    });
}

#[test]
fn a_question_is_asked_once_and_again_when_blocks_are_taken_back() {
    on_both(async |node| {
        let ledger = ledger(&node).await;
        let author = node.member(&ledger, "author").await;
        let listing = publish(&ledger, &author, "small").await;
        let host = enrolled(&node, &ledger, "host", Role::Host, 60).await;
        let id = PledgeId { host: host.account(), listing };
        ledger.pledge(&host, id).await.unwrap();
        node.draw(&ledger, &author).await;
        let epoch = node.draw(&ledger, &author).await;
        let Question::Asked { chunk: index, .. } = ledger.question(id, epoch).await.unwrap() else {
            panic!("asked")
        };
        let index = usize::try_from(index).unwrap();
        let (mut roll, mut questions) = (ledger.roll().await.unwrap(), Questions::default());
        assert_eq!(questions.open(&roll, 0..=epoch).await.unwrap().len(), 1);
        let fork = node.ask("evm_snapshot", json!([])).await;
        let proof = merkle::prove(&leaves(), index).unwrap();
        ledger.answer(&author, id, epoch, chunk(index), &proof).await.unwrap();
        roll.update().await.unwrap();
        assert!(questions.open(&roll, 0..=epoch).await.unwrap().is_empty());
        // Names that were stored in a folder are those that are read again.
        let folder = tempfile::tempdir().unwrap();
        roll.store(folder.path()).await.unwrap().unwrap();
        assert_eq!(Roll::open(ledger.clone(), folder.path()).await.unwrap().names(), roll.names());
        // The answer is taken back: there is a question again.
        node.ask("evm_revert", json!([fork])).await;
        node.advance(10).await;
        roll.update().await.unwrap();
        assert_eq!(questions.open(&roll, 0..=epoch).await.unwrap().len(), 1);
        ledger.answer(&author, id, epoch, chunk(index), &proof).await.unwrap();
        roll.update().await.unwrap();
        assert!(questions.open(&roll, 0..=epoch).await.unwrap().is_empty());
        // A file that holds something else is not believed.
        for file in std::fs::read_dir(folder.path()).unwrap() {
            std::fs::write(file.unwrap().path(), b"{}").unwrap();
        }
        let mut anew = Roll::open(ledger.clone(), folder.path()).await.unwrap();
        anew.update().await.unwrap();
        assert_eq!(anew.names().pledges, roll.names().pledges);
        // Nothing is asked of the node any more.
        drop(node);
        assert!(questions.open(&roll, 0..=epoch).await.unwrap().is_empty());
    });
}
