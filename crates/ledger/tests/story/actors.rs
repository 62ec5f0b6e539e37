//! Who takes part: providers that serve and post, auditors that execute again and dispute.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_signer::SignerSync as _;
use alloy_sol_types::SolCall;
use assay_core::answer::AnswerRecord;
use assay_core::id::{ChannelId, Hash, ModelRoot, NodeAddress, SignatureBytes};
use assay_core::merkle;
use assay_core::receipt::Domain;
use assay_engine::replay::ByReference;
use assay_ledger::amount::Amount;
use assay_ledger::audits::{digests_root, revealed_digests};
use assay_ledger::contracts::{Audits, Channels, Disputes, Epochs, Retrieval, b256, channel_id};
use assay_ledger::epochs::{Builder, Identity, Listing, Posting, Terms};
use assay_ledger::ledger::{Ledger, Phase, Role};
use assay_ledger::retrieval::{self, Fetch};
use assay_ledger::sender::Sender;
use assay_ledger::voucher;
use assay_verify::dispute::calldata::Encoder;
use assay_verify::dispute::parties::{Challenger, Defender, Player, stands_by};
use assay_verify::dispute::{Message, Outcome, Party, Referee};
use assay_verify::receipts::audit_digest;
use assay_verify::trace::walk::Trace;

use crate::chains::{DOLLAR, Node, hash};
use crate::miniature::{Small, bind, sampling, statement, subject};
use crate::{EPOCH, Gas, ROYALTY_PPM};

/// What a step of a Merkle path costs more where the node is the right one of two, in gas.
const RIGHT_STEP: u64 = 10;

/// The ledger, the model that is served, and what actions cost.
pub struct Market<'a> {
    pub node: &'a Node,
    pub ledger: &'a Ledger,
    pub model: &'a Small,
    pub gas: Gas,
}

impl Market<'_> {
    /// Somebody with dollars on the ledger.
    pub async fn member(&mut self, name: &str, dollars: u64) -> Sender {
        let sender = self.node.member(self.ledger, name).await;
        if dollars > 0 {
            self.ledger.deposit(&sender, Amount(u128::from(dollars * DOLLAR))).await.unwrap();
        }
        sender
    }

    pub async fn send<C: SolCall>(&mut self, what: &str, by: &Sender, to: Address, call: &C) {
        let mined = by.send(what, to, call).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        self.gas.entry(what.to_owned()).or_default().push(mined.gas);
    }

    /// The same for a call whose bytes follow from the beacon, which differs from chain to chain: what they cost is taken off.
    pub async fn send_drawn<C: SolCall>(&mut self, what: &str, by: &Sender, to: Address, call: &C) {
        self.send_climbing(what, by, to, call, 0).await;
    }

    /// The same for a call that climbs a Merkle path from a leaf that the beacon drew: every step on which the node is the right
    /// one of two costs a jump more, which is taken off too.
    pub async fn send_climbing<C: SolCall>(
        &mut self,
        what: &str,
        by: &Sender,
        to: Address,
        call: &C,
        leaf: usize,
    ) {
        let mined = by.send(what, to, call).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let bytes: u64 = call.abi_encode().iter().map(|byte| if *byte == 0 { 4 } else { 16 }).sum();
        let jumps = RIGHT_STEP * u64::from(leaf.count_ones());
        self.gas.entry(format!("{what}, without calldata")).or_default().push(mined.gas - bytes - jumps);
    }

    /// The model's root.
    pub fn root(&self) -> B256 {
        B256::from(*self.model.tree.root().as_bytes())
    }

    /// Closes an epoch whose posting is over, and fixes its beacon.
    pub async fn draw(&mut self, by: &Sender, epoch: u64) {
        assert_eq!(self.ledger.phase(epoch).await.unwrap(), Phase::Closing);
        self.send("close", by, self.ledger.parts().at.epochs, &Epochs::closeCall { epoch }).await;
        self.node.mine(6).await;
        self.ledger.fix_beacon(by, epoch).await.unwrap();
    }

    fn domain(&self) -> Domain {
        let contract = NodeAddress::from_bytes(self.ledger.parts().at.epochs.into_array());
        Domain { chain_id: self.node.client.chain_id(), contract }
    }

    fn trace(&self, record: &AnswerRecord) -> Trace<'_> {
        let constants = self.model.constants.as_ref();
        Trace::new(constants, subject(record), &mut ByReference(constants))
    }

    fn player(&self, record: &AnswerRecord) -> Player<'_> {
        Player::new(self.trace(record), Box::new(ByReference(self.model.constants.as_ref())))
    }

    /// The payer's channels, as the ledger's log says.
    pub async fn channels(&self, payer: &Sender) -> Vec<Channels::ChannelConfig> {
        use alloy_provider::Provider as _;
        use alloy_sol_types::SolEvent as _;
        let filter = alloy_rpc_types_eth::Filter::new()
            .address(self.ledger.parts().at.channels)
            .event_signature(Channels::Opened::SIGNATURE_HASH)
            .from_block(0);
        let logs = self.node.client.provider().get_logs(&filter).await.unwrap();
        let opened = logs.iter().map(|log| Channels::Opened::decode_log_data(&log.inner.data).unwrap());
        opened.filter(|o| o.payer == payer.account()).map(|o| o.config).collect()
    }
}

/// A provider: its receipts, what it was paid by, and what it posts.
pub struct Provider {
    pub sender: Sender,
    pub answers: Vec<AnswerRecord>,
    config: Channels::ChannelConfig,
    /// The newest voucher: what it allows, and its signature.
    voucher: (u128, Bytes),
    builder: Builder,
    _folder: tempfile::TempDir,
}

impl Provider {
    pub const FEE: u64 = 250_000;

    pub async fn new(market: &mut Market<'_>, name: &str, stake: u64) -> Provider {
        let sender = market.member(name, stake / DOLLAR).await;
        let key = sender.key().clone();
        let role = Role::Provider as u8;
        market
            .ledger
            .enrol(&sender, &key, role, "https://node.example".into(), hash("prices"))
            .await
            .unwrap();
        market.ledger.stake(&sender, sender.account(), Amount(stake.into())).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let provider = NodeAddress::from_bytes(sender.account().into_array());
        let identity = Identity { provider, domain: market.domain() };
        let (builder, _) = Builder::open(folder.path(), identity).unwrap();
        Provider {
            sender,
            answers: vec![],
            config: Default::default(),
            voucher: Default::default(),
            builder,
            _folder: folder,
        }
    }

    /// The payer opens a lane to this provider.
    pub async fn open_channel(&mut self, market: &mut Market<'_>, payer: &Sender, amount: u64) {
        self.config = Channels::ChannelConfig {
            payer: payer.account(),
            payerAuthorizer: Address::ZERO,
            receiver: self.sender.account(),
            receiverAuthorizer: Address::ZERO,
            token: market.ledger.parts().at.token,
            withdrawDelay: alloy_primitives::aliases::U40::from(3_600),
            salt: hash("lane 0"),
        };
        let call = Channels::depositCall { config: self.config.clone(), amount: amount.into() };
        market.send("channel deposit", payer, market.ledger.parts().at.channels, &call).await;
    }

    /// Answers one request for a voucher that allows its fee. Returns the fee.
    pub async fn serve(&mut self, market: &Market<'_>, payer: &Sender, number: u64) -> u64 {
        let domain = voucher::domain(market.node.client.chain_id(), market.ledger.parts().at.channels);
        let id = voucher::channel_id(&self.config, &domain);
        let allowed = self.voucher.0 + u128::from(Self::FEE);
        let signed = voucher::sign(payer.key(), id, allowed, &domain).unwrap();
        // The provider looks before it serves: at the signature, and at what stands behind it.
        voucher::check(&self.config, allowed, &signed, &domain).unwrap();
        assert!(market.ledger.channel(id).await.unwrap().balance >= allowed.try_into().unwrap());
        self.voucher = (allowed, signed);
        let mut how = sampling();
        how.seed = Some(number);
        let record = market.model.answer(20, 50, how);
        let record = self.sign(market, record, number, channel_id(id));
        self.answers.push(record);
        Self::FEE
    }

    fn sign(
        &self,
        market: &Market<'_>,
        mut record: AnswerRecord,
        sequence: u64,
        channel: ChannelId,
    ) -> AnswerRecord {
        let signed = &mut record.receipt;
        let receipt = &mut signed.receipt;
        receipt.provider = NodeAddress::from_bytes(self.sender.account().into_array());
        receipt.sequence = sequence;
        receipt.epoch = EPOCH;
        receipt.payer_channel = channel;
        receipt.fee_micro_usd = Self::FEE;
        signed.domain = market.domain();
        let hash = b256(&signed.receipt.signing_hash(&signed.domain));
        let signature = self.sender.key().sign_hash_sync(&hash).unwrap();
        signed.signature = SignatureBytes::from_bytes(signature.as_bytes());
        record
    }

    /// One of its answers with a token that the model did not choose, executed as if it had.
    pub fn swapped(&self, market: &Market<'_>, index: usize) -> AnswerRecord {
        let mut record = self.answers[index].clone();
        let id = &mut record.transcript.output_ids[25];
        *id = (*id + 1) % 83;
        record.digests = market.trace(&record).digests();
        bind(&mut record);
        let (sequence, channel) = (record.receipt.receipt.sequence, record.receipt.receipt.payer_channel);
        self.sign(market, record, sequence, channel)
    }

    /// Turns the newest voucher into money that waits for receipts.
    pub async fn claim(&mut self, market: &mut Market<'_>) {
        let channels = market.ledger.parts().at.channels;
        let (total, signature) = self.voucher.clone();
        let claims = vec![voucher::claim(&self.config, total, signature, total)];
        market.send("claim", &self.sender, channels, &Channels::claimCall { claims }).await;
        let settle = Channels::settleCall { receiver: self.sender.account() };
        market.send("channel settle", &self.sender, channels, &settle).await;
    }

    fn listings(&self, market: &Market<'_>, author: Address) -> BTreeMap<ModelRoot, Listing> {
        BTreeMap::from([(market.model.tree.root(), Listing { owner: author, royalty_ppm: ROYALTY_PPM })])
    }

    pub async fn post(&mut self, market: &mut Market<'_>, author: Address) {
        let receipts: Vec<_> = self.answers.iter().map(|a| a.receipt.clone()).collect();
        self.builder.append_many(&receipts).unwrap();
        let batch = self.builder.seal(EPOCH, &Terms::default()).unwrap();
        let identity = *self.builder.identity();
        let call = batch.post_call(identity.provider, &self.listings(market, author));
        let epochs = market.ledger.parts().at.epochs;
        let mined = self.sender.send("post", epochs, &call).await.unwrap();
        market.gas.entry("post".into()).or_default().push(mined.gas);
        let posting = Posting { block: mined.block, transaction: Hash::from_bytes(mined.hash.0) };
        self.builder.posted(EPOCH, posting).unwrap();
    }

    pub async fn panel(&self, market: &Market<'_>) -> u8 {
        let call = Epochs::batchOfCall { provider: self.sender.account(), epoch: EPOCH };
        market.node.client.read(market.ledger.parts().at.epochs, &call).await.unwrap().panel
    }

    pub async fn release(&mut self, market: &mut Market<'_>, by: &Sender, author: Address) {
        let entry = self.builder.batches().iter().find(|b| b.batch.epoch == EPOCH).unwrap().clone();
        let tree =
            entry.batch.share_tree(&self.listings(market, author), market.ledger.parameters().split.hostsPpm);
        let leaves: Vec<Hash> = tree.leaves.iter().map(|l| merkle::leaf(&share_bytes(l))).collect();
        let proof = (&merkle::prove(&leaves, 0).unwrap()).into();
        let call = Epochs::releaseCall {
            provider: self.sender.account(),
            epoch: EPOCH,
            share: tree.leaves[0].clone(),
            proof,
        };
        market.send("release", by, market.ledger.parts().at.epochs, &call).await;
    }

    /// The payer has every fee of this provider's epoch given back.
    pub async fn refund(&self, market: &mut Market<'_>, payer: &Sender) {
        for record in &self.answers {
            let proof = self.builder.proof(record.receipt.receipt.sequence).unwrap().proof;
            let call = Epochs::refundCall {
                receipt: (&record.receipt.receipt).into(),
                config: Epochs::ChannelConfig {
                    payer: self.config.payer,
                    payerAuthorizer: self.config.payerAuthorizer,
                    receiver: self.config.receiver,
                    receiverAuthorizer: self.config.receiverAuthorizer,
                    token: self.config.token,
                    withdrawDelay: self.config.withdrawDelay,
                    salt: self.config.salt,
                },
                epoch: EPOCH,
                proof: (&proof).into(),
                signature: Bytes::new(),
            };
            market.send("refund", payer, market.ledger.parts().at.epochs, &call).await;
        }
    }
}

fn share_bytes(l: &Epochs::ShareLeaf) -> Vec<u8> {
    [
        l.modelRoot.as_slice(),
        l.listing.as_slice(),
        &l.total.to_be_bytes(),
        &l.royalty.to_be_bytes(),
        &l.hosts.to_be_bytes(),
    ]
    .concat()
}

/// A receipt that does not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub provider: Address,
    pub index: usize,
}

/// Digests of one member of a panel.
struct Work {
    provider: Address,
    member: u8,
    digests: Vec<(u64, Hash)>,
}

impl Work {
    fn digests(&self) -> impl Iterator<Item = (u64, &Hash)> {
        self.digests.iter().map(|(sequence, digest)| (*sequence, digest))
    }
}

pub struct Auditor {
    pub sender: Sender,
    work: Vec<Work>,
    pub found: Vec<Verdict>,
}

impl Auditor {
    const SEATS: u64 = 2;

    pub async fn new(market: &mut Market<'_>, name: &str, number: u64) -> Auditor {
        let stake = Self::SEATS * market.ledger.parameters().stakes.seatStake;
        let sender = market.member(name, stake / DOLLAR + 50).await;
        let key = sender.key().clone();
        market.ledger.enrol(&sender, &key, Role::Auditor as u8, String::new(), B256::ZERO).await.unwrap();
        market.ledger.stake(&sender, sender.account(), Amount(stake.into())).await.unwrap();
        let slots = (0..Self::SEATS).map(|i| U256::from(number * Self::SEATS + i)).collect();
        let take = Audits::takeSeatsCall { auditor: sender.account(), slots };
        market.send("takeSeats", &sender, market.ledger.parts().at.audits, &take).await;
        Auditor { sender, work: vec![], found: vec![] }
    }

    pub async fn vault(&self, ledger: &Ledger) -> Amount {
        ledger.holdings(self.sender.account()).await.unwrap().vault
    }

    /// Executes what the draw assigned to this auditor's places on a provider's panel.
    pub async fn execute(&mut self, market: &Market<'_>, provider: &Provider) {
        let (client, at) = (&market.node.client, &market.ledger.parts().at);
        let account = provider.sender.account();
        let beacon = client.read(at.epochs, &Epochs::beaconOfCall { epoch: EPOCH }).await.unwrap().value;
        for member in 0..provider.panel(market).await {
            let call = Audits::auditorOfCall { provider: account, epoch: EPOCH, member: U256::from(member) };
            if client.read(at.audits, &call).await.unwrap() != self.sender.account() {
                continue;
            }
            let mut digests = Vec::new();
            for (index, record) in provider.answers.iter().enumerate() {
                let receipt = (&record.receipt.receipt).into();
                let call = Audits::isAssignedCall { epoch: EPOCH, member: U256::from(member), receipt };
                if !client.read(at.audits, &call).await.unwrap() {
                    continue;
                }
                let own = market.trace(record);
                if !stands_by(&own, record, &mut ByReference(market.model.constants.as_ref())) {
                    self.found.push(Verdict { provider: account, index });
                }
                let me = NodeAddress::from_bytes(self.sender.account().into_array());
                let digest = audit_digest(me, &beacon.0, record.receipt.receipt.id(), &own.root());
                digests.push((record.receipt.receipt.sequence, digest));
            }
            self.work.push(Work { provider: account, member, digests });
        }
    }

    fn salt(&self) -> B256 {
        keccak256(self.sender.key().to_bytes())
    }

    pub async fn commit(&self, market: &mut Market<'_>) {
        let audits = market.ledger.parts().at.audits;
        for work in &self.work {
            let member = U256::from(work.member);
            let root = b256(&digests_root(work.digests()));
            let (auditor, provider, epoch) = (self.sender.account(), work.provider, EPOCH);
            let call = Audits::commitmentOfCall { auditor, provider, epoch, member, root, salt: self.salt() };
            let commitment = market.node.client.read(audits, &call).await.unwrap();
            let call = Audits::commitCall { provider, epoch, member, commitment };
            market.send_drawn("commit", &self.sender, audits, &call).await;
        }
    }

    pub async fn reveal(&self, market: &Market<'_>) {
        for work in &self.work {
            let call = Audits::revealCall {
                provider: work.provider,
                epoch: EPOCH,
                member: U256::from(work.member),
                digests: revealed_digests(work.digests()),
                salt: self.salt(),
            };
            // Not compared: how many digests there are, the beacon says.
            self.sender.send("reveal", market.ledger.parts().at.audits, &call).await.unwrap();
        }
    }

    /// Disputes a receipt down to one operation, against a provider that defends what it signed.
    pub async fn dispute(&self, market: &mut Market<'_>, cheat: &Provider, index: usize) -> Outcome {
        let record = cheat.answers[index].clone();
        let signed = &record.receipt;
        let disputes = market.ledger.parts().at.disputes;
        let open = Disputes::openCall {
            stated: (&signed.receipt).into(),
            signature: signed.signature.as_bytes().to_vec().into(),
            epoch: EPOCH,
        };
        market.send("dispute open", &self.sender, disputes, &open).await;
        let receipt = b256(&signed.receipt.signing_hash(&signed.domain));
        let (challenger, defender) = (self.sender.account(), cheat.sender.account());
        let mut referee = Referee::new(statement(&record)).unwrap();
        let mut encoder = Encoder::new(statement(&record));
        let (model, mut moves) = (market.model, Vec::new());
        {
            let mut accused = Defender::new(market.player(&record), &record, &model.tree);
            let mut accuser = Challenger::new(market.player(&record), &record);
            while let Some(turn) = referee.turn() {
                match turn {
                    Party::Defender => {
                        let claim = accused.answer(&referee).unwrap();
                        let message = encoder.claim(&referee, &claim).unwrap().into();
                        referee.receive(Party::Defender, &Message::Claim(claim));
                        let call = Disputes::claimCall { receipt, challenger, defender, message };
                        moves.push(cheat.sender.send("dispute claim", disputes, &call).await.unwrap().gas);
                    }
                    Party::Challenger => {
                        let pick = accuser.answer(&referee).unwrap();
                        let message = encoder.pick(&referee, &pick).unwrap().into();
                        referee.receive(Party::Challenger, &Message::Pick(pick));
                        let call = Disputes::pickCall { receipt, defender, message };
                        moves.push(self.sender.send("dispute pick", disputes, &call).await.unwrap().gas);
                    }
                }
            }
        }
        market.gas.insert("dispute moves".into(), moves);
        let call = Disputes::disputeOfCall { receipt, challenger, defender };
        let walk = market.node.client.read(disputes, &call).await.unwrap().walk;
        assert_eq!(
            walk.rows == 1,
            referee.outcome().unwrap().winner == Party::Challenger,
            "as the contract says"
        );
        referee.outcome().unwrap()
    }

    /// Leaves its seats and starts to take its stake out.
    pub async fn leave(&self, market: &mut Market<'_>) {
        let audits = market.ledger.parts().at.audits;
        let mut slots = Vec::new();
        for slot in 0..3 * Self::SEATS {
            let slot = U256::from(slot);
            let seat = market.node.client.read(audits, &Audits::seatOfCall { slot }).await.unwrap();
            if seat.auditor == self.sender.account() {
                slots.push(slot);
            }
        }
        let call = Audits::leaveSeatsCall { auditor: self.sender.account(), slots };
        market.send("leaveSeats", &self.sender, audits, &call).await;
        let stake = market.ledger.node(self.sender.account()).await.unwrap().unwrap().stake;
        market.ledger.unstake(&self.sender, self.sender.account(), Amount(stake)).await.unwrap();
    }
}

/// Who keeps the model's content.
pub struct Host {
    pub sender: Sender,
    listing: Address,
    chunks: Vec<Vec<u8>>,
}

impl Host {
    /// What stands for the model's content here: chunks, and the root that the listing names.
    pub fn content() -> (Vec<Vec<u8>>, B256) {
        let chunks: Vec<Vec<u8>> = (0..4u8).map(|i| vec![i; 1024]).collect();
        let root = merkle::root(chunks.iter().map(|c| merkle::leaf(c)));
        (chunks, b256(&root))
    }

    pub async fn new(market: &mut Market<'_>, listing: Address) -> Host {
        let stake = market.ledger.parameters().stakes.pledgeStake;
        let sender = market.member("host", stake / DOLLAR).await;
        let key = sender.key().clone();
        let host = sender.account();
        market.ledger.enrol(&sender, &key, Role::Host as u8, String::new(), B256::ZERO).await.unwrap();
        market.ledger.stake(&sender, host, Amount(stake.into())).await.unwrap();
        let call = Retrieval::pledgeCall { host, modelRoot: market.root(), listing };
        market.send("pledge", &sender, market.ledger.parts().at.retrieval, &call).await;
        Host { sender, listing, chunks: Self::content().0 }
    }

    /// Answers the chunk that an epoch's beacon asks for.
    pub async fn answer(&self, market: &mut Market<'_>, epoch: u64) {
        let retrieval = market.ledger.parts().at.retrieval;
        let (host, model, listing) = (self.sender.account(), market.root(), self.listing);
        let question = Retrieval::questionForCall { host, modelRoot: model, listing, epoch };
        let question = market.node.client.read(retrieval, &question).await.unwrap();
        assert!(question.asked);
        let index = usize::try_from(question.index).unwrap();
        let leaves: Vec<Hash> = self.chunks.iter().map(|c| merkle::leaf(c)).collect();
        let call = Retrieval::answerCall {
            host,
            modelRoot: model,
            listing,
            epoch,
            chunk: self.chunks[index].clone().into(),
            proof: (&merkle::prove(&leaves, index).unwrap()).into(),
        };
        market.send_climbing("answer", &self.sender, retrieval, &call, index).await;
    }

    /// Has a provider's word counted that it fetched a mebibyte.
    pub async fn served(&self, market: &mut Market<'_>, provider: &Provider) {
        let fetch = Fetch {
            downloader: provider.sender.account(),
            host: self.sender.account(),
            modelRoot: market.root(),
            listing: self.listing,
            bytesFetched: 1 << 20,
        };
        let domain = market.ledger.retrieval_domain();
        let signature = retrieval::sign(provider.sender.key(), &fetch, &domain).unwrap();
        retrieval::check(&fetch, &signature, &domain).unwrap();
        let call = Retrieval::servedCall { fetch, signature };
        market.send("served", &self.sender, market.ledger.parts().at.retrieval, &call).await;
    }

    pub async fn collect_served(&self, market: &mut Market<'_>, provider: &Provider) {
        let call = Retrieval::collectServedCall {
            host: self.sender.account(),
            modelRoot: market.root(),
            listing: self.listing,
            provider: provider.sender.account(),
        };
        market.send("collectServed", &self.sender, market.ledger.parts().at.retrieval, &call).await;
    }

    pub async fn collect(&self, market: &mut Market<'_>) {
        let call = Retrieval::collectCall {
            host: self.sender.account(),
            modelRoot: market.root(),
            listing: self.listing,
        };
        market.send("host collect", &self.sender, market.ledger.parts().at.retrieval, &call).await;
    }

    /// Ends its pledge and starts to take its stake out.
    pub async fn leave(&self, market: &mut Market<'_>) {
        let call = Retrieval::unpledgeCall {
            host: self.sender.account(),
            modelRoot: market.root(),
            listing: self.listing,
        };
        market.send("unpledge", &self.sender, market.ledger.parts().at.retrieval, &call).await;
        let stake = market.ledger.node(self.sender.account()).await.unwrap().unwrap().stake;
        market.ledger.unstake(&self.sender, self.sender.account(), Amount(stake)).await.unwrap();
    }
}
