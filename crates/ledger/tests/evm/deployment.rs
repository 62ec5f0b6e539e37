//! What disputes need of a deployment: the token, the vault, the registry, the epochs, and the contracts of disputes.

use revm::primitives::Address;

use super::{Chain, OPERATOR, address, selector, tail, word};

pub const CHALLENGER: Address = Address::repeat_byte(0x22);
pub const BOND: u64 = 500;
pub const STAKE: u64 = 1_000_000;
/// A dispute lasts at most so long: twenty moves.
pub const DISPUTE_SECONDS: u64 = 172_800;
/// What the challenger gets of what is slashed, in millionths.
const REPORTER_PPM: u64 = 300_000;
const TREASURY: Address = Address::repeat_byte(0x77);
const ABSENT: Address = Address::repeat_byte(0x55);

/// The contracts.
pub struct Deployment {
    pub chain: Chain,
    pub vault: Address,
    pub registry: Address,
    pub epochs: Address,
    pub disputes: Address,
    pub referee: Address,
}

/// Times, rates, split and stakes, as `Parameters` orders them.
const PARAMETERS: [u64; 31] = [
    0,
    86_400,
    7_200,
    8,
    43_200,
    7_200,
    36_000,
    10_800,
    DISPUTE_SECONDS,
    2_592_000,
    604_800,
    21_600, // times
    1_000_000,
    10_000,
    50_000,
    200_000,
    256,
    2,
    16, // rates
    200_000,
    30_000,
    10_000,
    20_000,
    200_000,
    REPORTER_PPM, // split
    1_000,
    1_000,
    10,
    10,
    BOND,
    10, // stakes
];

impl Deployment {
    pub fn new() -> Deployment {
        let mut chain = Chain::new();
        let at = |n| chain.next_address(OPERATOR, n);
        let (vault, registry, epochs, disputes) = (at(2), at(3), at(4), at(10));
        let parts = [at(0), vault, registry, ABSENT, epochs, ABSENT, ABSENT, ABSENT, disputes, TREASURY];
        let mut arguments: Vec<[u8; 32]> = parts.into_iter().map(address).collect();
        arguments.extend(PARAMETERS.map(word));
        let token = chain.deploy("TestToken", &[word(0)]);
        let directory = chain.deploy("Directory", &arguments);
        assert_eq!(chain.deploy("Vault", &[address(directory)]), vault);
        assert_eq!(chain.deploy("Registry", &[address(directory)]), registry);
        assert_eq!(chain.deploy("Epochs", &[address(directory)]), epochs);
        let steps = ["OperationSteps", "AttentionSteps", "SamplingSteps"].map(|n| chain.deploy(n, &[]));
        let adjudicator = chain.deploy("Adjudicator", &steps.map(address));
        let referee = chain.deploy("Referee", &[address(adjudicator)]);
        assert_eq!(chain.deploy("Disputes", &[address(directory), address(referee)]), disputes);
        let mut d = Deployment { chain, vault, registry, epochs, disputes, referee };
        d.fund(token, CHALLENGER, 1_000_000);
        d.fund(token, OPERATOR, 100_000_000);
        d
    }

    /// Gives an account tokens in the vault.
    fn fund(&mut self, token: Address, account: Address, amount: u64) {
        let call =
            |signature: &str, to: Address| [&selector(signature)[..], &address(to), &word(amount)].concat();
        let vault = self.vault;
        for (to, data) in [
            (token, call("mint(address,uint256)", account)),
            (token, call("approve(address,uint256)", vault)),
            (vault, call("deposit(address,uint256)", account)),
        ] {
            let done = self.chain.send(account, to, data);
            assert!(done.ok, "{done:?}");
        }
    }

    /// Enrols a provider that is its own owner, with a stake.
    pub fn enrol(&mut self, provider: Address) {
        let mut data = selector("enrol(address,uint8,string,bytes32,bytes)").to_vec();
        data.extend(address(provider));
        data.extend(word(1));
        data.extend(word(160));
        data.extend([0; 32]);
        data.extend(word(192));
        data.extend(tail(b""));
        data.extend(tail(b""));
        let done = self.chain.send(provider, self.registry, data);
        assert!(done.ok, "{done:?}");
        let data = [&selector("bond(address,uint256)")[..], &address(provider), &word(STAKE)].concat();
        let done = self.chain.send(OPERATOR, self.registry, data);
        assert!(done.ok, "{done:?}");
    }

    /// What an account has in the vault.
    pub fn balance(&mut self, account: Address) -> u64 {
        let data = [&selector("balanceOf(address)")[..], &address(account)].concat();
        number(&self.chain.call(self.vault, data).data)
    }

    /// What a provider has at stake.
    pub fn stake(&mut self, provider: Address) -> u64 {
        let data = [&selector("stakeOf(address)")[..], &address(provider)].concat();
        number(&self.chain.call(self.registry, data).data)
    }
}

fn number(word: &[u8]) -> u64 {
    u64::from_be_bytes(word[24..32].try_into().unwrap())
}
