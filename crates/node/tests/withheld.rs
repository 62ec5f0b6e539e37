//! Receipts whose clients let nobody but the provider see the request: drawn among others, audited as far as they can be, and shown to nobody.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;
mod economy;
#[path = "../../verify/tests/honest/mod.rs"]
mod honest;

use std::path::Path;

use alloy_primitives::B256;
use alloy_signer::SignerSync as _;
use assay_api::audits::{AuditAnswer, AuditClient, Wanted};
use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical as _;
use assay_core::consent::{Consent, WithheldRecord};
use assay_core::embedding::Record;
use assay_core::id::{Hash, SignatureBytes};
use assay_core::request::{Message, Prompt, Role};
use assay_ledger::contracts::node_address;
use assay_ledger::docket::{DemandId, DemandKind};
use assay_ledger::ledger::Phase;
use chains::{DOLLAR, parameters};
use economy::{Checker, Economy, FEE, Provider};

const STAKE: u64 = 20;
/// What the client of the second answer says.
const SECRET: &str = "a little secret dog that nobody is to hear of";

/// Three answers, all drawn, the second to a client that withholds its consent, changed by `change`; up to the beacon.
async fn epoch(
    e: &Economy,
    provider: &Provider,
    auditors: &[&Checker],
    change: impl Fn(AnswerRecord) -> AnswerRecord,
) -> (u64, Vec<AnswerRecord>) {
    for auditor in auditors {
        auditor.rounds(e).await;
    }
    e.node.advance(3_600).await;
    let epoch = e.ledger.epoch().await.unwrap();
    let mut records = Vec::new();
    {
        let store = provider.store();
        for place in 0..3 {
            let mut request = e.model.request();
            request.sampling.seed = Some(place);
            request.max_tokens = 8;
            if place == 1 {
                let messages = vec![Message::text(Role::User, SECRET)];
                request.prompt = Prompt::Chat { messages, tools: vec![] };
                request.audit = Consent::Withheld;
            }
            let mut record = e.model.answer(request);
            let sequence = store.reserve_sequence().unwrap();
            let receipt = &mut record.receipt.receipt;
            (receipt.sequence, receipt.epoch, receipt.fee_micro_usd) = (sequence.number(), epoch, FEE);
            let record = if place == 1 { change(record) } else { record };
            records.push(provider.keep(e, &store, record));
        }
    }
    e.node.advance(3_600).await;
    provider.steps(e).await;
    e.node.advance(1_800).await;
    provider.steps(e).await;
    e.node.mine(6).await;
    provider.steps(e).await;
    assert_eq!(e.ledger.phase(epoch).await.unwrap(), Phase::Committing);
    (epoch, records)
}

fn economy_parameters() -> assay_ledger::contracts::Directory::Parameters {
    let mut p = parameters();
    p.rates.rateMinPpm = 1_000_000;
    p
}

/// Whether bytes have something of the secret prompt: of its text, or of the ids that it was rendered to.
fn tells(bytes: &[u8], secret: &AnswerRecord) -> bool {
    let ids = &secret.transcript.prompt_ids;
    let words = ids.windows(3).skip(ids.len() / 3);
    let numbers: Vec<Vec<u8>> = words.map(|w| w.iter().flat_map(|id| id.to_le_bytes()).collect()).collect();
    let of = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    of(b"secret dog") || numbers.iter().any(|number| of(number))
}

/// All that lies in a folder.
fn everything(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(everything(&path)),
            false => all.extend(std::fs::read(path).unwrap()),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_provider_sees_what_a_client_withholds() {
    let e = Economy::new(economy_parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let auditor = Checker::new(&e, "auditor", 2).await;
    let (epoch, records) = epoch(&e, &provider, &[&auditor], |record| record).await;
    let secret = &records[1];
    let mut living = provider.live(&e).await;
    living.settlement.round().await.unwrap();

    // What the desk gives the auditor that was drawn: records, and of the second the receipt and that it is withheld.
    let key = auditor.key.clone();
    let sign = |hash: &Hash| {
        let signed = key.sign_hash_sync(&B256::from(*hash.as_bytes())).ok()?;
        Some(SignatureBytes::from_bytes(signed.as_bytes()))
    };
    let numbers = records.iter().map(|record| record.receipt.receipt.sequence).collect();
    let (asked, asking) = (node_address(provider.account), node_address(auditor.account));
    let wanted = Wanted::Records(numbers);
    let given = AuditClient::new().ask(&provider.front.url, asked, asking, epoch, wanted, &sign).await;
    let AuditAnswer::Records(given) = given.unwrap() else { panic!() };
    let stored = |record: &AnswerRecord| Record::Answer(Box::new(record.clone()));
    assert_eq!(given[0], stored(&records[0]).to_canonical_bytes());
    assert_eq!(given[2], stored(&records[2]).to_canonical_bytes());
    let shown = WithheldRecord::from_canonical_bytes(&given[1]).unwrap();
    assert_eq!((&shown.receipt, shown.check()), (&secret.receipt, Ok(())));
    assert!(tells(&stored(secret).to_canonical_bytes(), secret), "the search finds what is there");
    assert!(!given.iter().any(|bytes| tells(bytes, secret)));

    // The auditor executes the others, and its duty is done with that.
    let before = e.vault(auditor.account).await;
    auditor.rounds(&e).await;
    assert_eq!((auditor.count("executed"), auditor.count("withheld")), (2, 1), "{:?}", auditor.events);
    drop(living);
    for _ in 0..3 {
        e.node.advance(3_601).await;
        auditor.rounds(&e).await;
    }
    provider.steps(&e).await;
    auditor.rounds(&e).await;
    let panel = e.batch(provider.account, epoch).await.panel;
    for kind in ["committed", "revealed", "collected"] {
        assert_eq!(auditor.count(kind), usize::from(panel), "{kind}: {:?}", auditor.events);
    }
    for kind in ["refused", "demanded", "opened", "failed"] {
        assert_eq!(auditor.count(kind), 0, "{kind}: {:?}", auditor.events);
    }
    assert!(provider.failures().is_empty(), "{:?}", provider.failures());
    // Nobody is struck or has lost a seat, and everyone is paid.
    assert!(!e.node_of(provider.account).await.struck);
    let seats = 2 * u128::from(e.ledger.parameters().stakes.seatStake);
    assert_eq!(e.node_of(auditor.account).await.stake, seats);
    assert!(e.vault(auditor.account).await > before);
    assert!(e.node_of(provider.account).await.stake > u128::from(STAKE * DOLLAR));
    assert!(!tells(&everything(&auditor.folder), secret), "nor is it on the auditor's disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demand_for_a_withheld_record_is_answered_without_it() {
    let e = Economy::new(economy_parameters()).await;
    let mut provider = Provider::new(&e, "provider", STAKE).await;
    provider.answers = false;
    let auditor = Checker::new(&e, "auditor", 1).await;
    let (epoch, _) = epoch(&e, &provider, &[&auditor], |record| record).await;
    let mut living = provider.live(&e).await;
    e.node.advance(901).await;
    // Leaf and record of the first receipt, then of the second.
    for _ in 0..5 {
        auditor.rounds(&e).await;
        living.settlement.round().await.unwrap();
    }
    assert!(provider.failures().is_empty(), "{:?}", provider.failures());
    assert_eq!(provider.count("answered"), 4, "{:?} {:?}", provider.events, auditor.events);
    e.node.advance(3_600 - 901 - 300).await;
    auditor.rounds(&e).await;
    assert_eq!((auditor.count("executed"), auditor.count("withheld")), (1, 1), "{:?}", auditor.events);
    assert!(!e.node_of(provider.account).await.struck);
    // What the ledger has of it is that it is withheld.
    let of = |index| DemandId { provider: provider.account, epoch, index, kind: DemandKind::Record };
    assert!(e.ledger.shown(&of(0), 0).await.unwrap().is_some());
    assert!(!e.ledger.withheld(&of(0), 0).await.unwrap());
    assert!(e.ledger.shown(&of(1), 0).await.unwrap().is_none());
    assert!(e.ledger.withheld(&of(1), 0).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_calls_private_what_its_client_did_not_is_struck() {
    let e = Economy::new(economy_parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let auditor = Checker::new(&e, "auditor", 1).await;
    // The client gave its consent, as the signed request hash says; the provider answers by a cheaper model and says that it may show nothing.
    let hidden = |mut record: AnswerRecord| {
        record.request.audit = Consent::Given;
        record.receipt.receipt.request_hash = record.request.hash();
        record.request.audit = Consent::Withheld;
        record
    };
    epoch(&e, &provider, &[&auditor], hidden).await;
    let mut living = provider.live(&e).await;
    living.settlement.round().await.unwrap();
    auditor.rounds(&e).await;
    assert_eq!((auditor.count("withheld"), auditor.count("refused")), (0, 1), "{:?}", auditor.events);
    e.node.advance(901).await;
    auditor.rounds(&e).await;
    living.settlement.round().await.unwrap();
    assert_eq!(auditor.count("demanded"), 1, "{:?}", auditor.events);
    // The ledger does not take its word either.
    assert_eq!((provider.count("answered"), provider.failures().len()), (0, 1), "{:?}", provider.events);
    e.node.advance(1_801).await;
    auditor.rounds(&e).await;
    assert!(e.node_of(provider.account).await.struck, "{:?} {:?}", auditor.events, provider.events);
}
