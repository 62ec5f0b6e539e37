//! `assay dispute`: who would be found wrong about an answer, and by what.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use assay_core::answer::AnswerRecord;
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants;
use assay_verify::dispute::parties::{Challenger, Defender, Player};
use assay_verify::dispute::{Claim, Message, Outcome, Party, Reason, Referee, Stage, Statement};
use assay_verify::microstep::{Cell, Source as _, choose, rule};
use assay_verify::trace::walk::Trace;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Cell as Field, Color, Table, presets};
use serde_json::{Value, json};

use super::record::{Answer, AnswerArgs};
use super::steps::{plural, rule_name};
use crate::home::Home;
use crate::progress;

mod accuser;
mod cheats;
mod models;
mod telling;

use accuser::{Accuser, Kind, Own};
use cheats::{Cheat, Random, Scheme};
use telling::{Teller, Told};

#[derive(Args)]
pub struct Dispute {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Simulate(Simulate),
}

/// Play a dispute over an answer on this machine, and print every message.
///
/// When a provider and whoever checked its answer disagree, nobody has to execute the answer a third time: the provider (the
/// defender) commits to everything that it computed, the other (the challenger) picks what it has otherwise, and after a few rounds one
/// number is left whose inputs are the same for both. A referee, who knows only the receipt and the messages, computes that one
/// number. An honest party cannot lose.
///
/// This plays such a dispute over a real answer, with both parties in this process, so that you can see what each would send, how large
/// it is, and which step gives a cheat away. Nothing is sent anywhere. `--cheat` says what the defender did when it made the answer: its
/// receipt is then what it would have signed. `--seed` fixes which matrix, token or number that is about.
///
/// Exit status: 0 if the receipt stands (the defender won), 1 if it fell, 2 if no dispute could be played.
#[derive(Args)]
struct Simulate {
    #[command(flatten)]
    answer: AnswerArgs,
    /// What the defender does.
    #[arg(long, value_enum, default_value_t = Cheat::Honest)]
    cheat: Cheat,
    /// Who accuses.
    #[arg(long, value_enum, default_value_t = Kind::Honest)]
    challenger: Kind,
    /// The same seed and answer give the same dispute.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Dispute {
    pub fn run(self, home: &Home) -> Result<ExitCode> {
        let What::Simulate(simulate) = self.what;
        simulate.run(home)
    }
}

impl Simulate {
    fn run(self, home: &Home) -> Result<ExitCode> {
        let answer = self.answer.load(home)?;
        if let Some(broken) = answer.record.broken_bindings().first() {
            bail!("only what a provider signed can be disputed, and this record is not that: {broken}");
        }
        let wait = progress::spinner("playing");
        let played = self.play(&answer);
        wait.finish_and_clear();
        let game = played?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.to_json(&answer, &game))?);
        } else {
            self.print(&answer, &game);
        }
        Ok(if game.outcome.winner == Party::Defender { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn play(&self, answer: &Answer) -> Result<Game> {
        let artifact = &answer.artifact;
        let tree = ModelTree::new(artifact.as_ref(), artifact.text(), artifact.tokenizer_json());
        if tree.root() != answer.record.receipt.receipt.model_root {
            bail!(
                "{} is not the receipt's model: its content has the root {}",
                artifact.path().display(),
                tree.root()
            );
        }
        let mut random = Random(self.seed);
        let mut scheme = Scheme::new(self.cheat, answer, &mut random)?;
        let executed = Arc::clone(&scheme.constants);
        let trace = scheme.trace(&executed, answer);
        let alteration = scheme.alteration();
        let player =
            Player::new(trace, Box::new(answer.executor_of(Arc::clone(&executed)))).altering(alteration);
        let record = &scheme.record;
        let mut defender = Defender::new(player, record, &tree);

        let constants: &dyn Constants = artifact.as_ref();
        let subject = answer.subject(record)?;
        let honest = || Trace::new(constants, subject.clone(), &mut answer.executor());
        let mut own = Own::new(honest(), answer.executor());
        let mut accuser = match self.challenger {
            Kind::Honest => {
                let player = Player::new(honest(), Box::new(answer.executor()));
                Accuser::Honest(Box::new(Challenger::new(player, record)))
            }
            Kind::False => Accuser::False(Random(random.draw())),
            Kind::Wild => Accuser::Wild(Random(random.draw())),
        };
        // An honest challenger finds nothing in what such a defender said before.
        let breaks_at = match (self.cheat, self.challenger) {
            (Cheat::Silent | Cheat::Garbage, Kind::Honest) => 0,
            (Cheat::Silent | Cheat::Garbage, Kind::False | Kind::Wild) => random.below(6),
            _ => usize::MAX,
        };
        let teller = Teller { checked: constants.program(), choice: &subject.choice };
        let statement = Statement::of(&record.receipt.receipt);
        let mut referee = Referee::new(statement).context("the receipt is of no answer")?;
        let (mut told, mut settled, mut claims) = (Vec::new(), None, 0);
        while let Some(by) = referee.turn() {
            let message = match by {
                Party::Defender => {
                    claims += 1;
                    let honest = |defender: &mut Defender<'_>| defender.answer(&referee);
                    self.claim(&referee, claims > breaks_at)
                        .unwrap_or_else(|| honest(&mut defender))
                        .map(Message::Claim)
                }
                Party::Challenger => accuser.pick(&referee, &mut own).map(Message::Pick),
            };
            let before = referee.clone();
            match message {
                Some(message) => {
                    referee.receive(by, &message);
                    told.push(teller.message(&before, &referee, by, &message));
                }
                None => {
                    referee.timeout();
                    told.push(teller.silence(&before, by));
                }
            }
            if let (Stage::PickNumber(numbers), Stage::Proof) = (before.stage(), referee.stage()) {
                settled = settle(&teller, &referee, numbers, &mut own, record);
            }
        }
        let outcome = referee.outcome().context("a dispute without a turn is over")?;
        let (rounds, bytes) = (referee.rounds(), referee.bytes());
        Ok(Game { what: scheme.what.clone(), told, settled, rounds, bytes, outcome })
    }

    /// What the defender says instead of what it should.
    fn claim(&self, referee: &Referee, breaks: bool) -> Option<Option<Claim>> {
        match (self.cheat, referee.stage()) {
            (Cheat::Silent, _) if breaks => Some(None),
            (Cheat::Garbage, Stage::Nodes) if breaks => Some(Some(Claim::Leaf(vec![0xff; 33]))),
            (Cheat::Garbage, _) if breaks => Some(Some(Claim::Nodes(vec![]))),
            _ => None,
        }
    }

    fn to_json(&self, answer: &Answer, game: &Game) -> Value {
        let message = |t: &Told| {
            json!({
                "round": t.round, "by": telling::name(t.by), "message": t.kind, "says": t.says, "picked": t.picked,
                "bytes": t.bytes,
            })
        };
        let winner = game.outcome.winner;
        json!({
            "receipt": answer.record.receipt.receipt.id(),
            "cheat": name_of(self.cheat),
            "challenger": name_of(self.challenger),
            "seed": self.seed,
            "defender": game.what,
            "messages": game.told.iter().map(message).collect::<Vec<_>>(),
            "settled_by": game.settled.as_ref().map(|s| &s.json),
            "rounds": game.rounds,
            "bytes": {"defender": game.bytes[0], "challenger": game.bytes[1]},
            "outcome": {"winner": telling::name(winner), "reason": game.outcome.reason.as_str()},
        })
    }

    fn print(&self, answer: &Answer, game: &Game) {
        let id = answer.record.receipt.receipt.id();
        println!("A dispute over receipt {id}, played on this machine.");
        println!("The defender {}; the challenger {}.\n", game.what, self.challenger.does());
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["round", "who", "what", "", "bytes"]);
        for t in &game.told {
            let color = if t.by == Party::Defender { Color::Cyan } else { Color::Yellow };
            table.add_row([
                Field::new(t.round.map_or("end".into(), |r| r.to_string())),
                Field::new(telling::name(t.by)).fg(color),
                Field::new(t.kind),
                Field::new(&t.says),
                Field::new(t.bytes),
            ]);
        }
        println!("{table}\n");
        if let Some(settled) = &game.settled {
            println!("{}", settled.text);
        }
        let [defender, challenger] = game.bytes;
        let rounds = plural(game.rounds as usize, "round");
        println!("Sent: {defender} bytes by the defender, {challenger} by the challenger, in {rounds}.");
        let Outcome { winner, reason } = game.outcome;
        let nothing_found =
            (reason, winner, self.challenger) == (Reason::Timeout, Party::Defender, Kind::Honest);
        let why = match nothing_found {
            true => "the challenger found nothing to dispute".into(),
            false => telling::reason(reason, winner.other()),
        };
        match winner {
            Party::Defender => println!("The receipt stands ({}): {why}", reason.as_str()),
            Party::Challenger => println!("THE RECEIPT FALLS ({}): {why}", reason.as_str()),
        }
    }
}

/// An argument's value as it is typed.
fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

/// A dispute that was played.
struct Game {
    what: String,
    told: Vec<Told>,
    settled: Option<Settled>,
    rounds: u32,
    bytes: [usize; 2],
    outcome: Outcome,
}

/// The number that a dispute came down to.
struct Settled {
    text: String,
    json: Value,
}

/// The number that was picked, and what it is in an honest execution.
fn settle(
    teller: &Teller<'_>,
    referee: &Referee,
    numbers: &[i64],
    own: &mut Own<'_>,
    record: &AnswerRecord,
) -> Option<Settled> {
    let cell = referee.cell()?;
    let Cell { op, part, position, column } = cell;
    let (_, number) = referee.picked();
    let claimed = *numbers.get(usize::from(number))?;
    let mut walked = own.walked(referee.block());
    let honest = walked.block.get(cell)?;
    let how = rule_name(rule(&mut walked, cell)?);
    let (step, part_name) = (teller.step(op), teller.part(op, part));
    let mut text = format!(
        "Settled by one number: {step}, part {part} ({part_name}), position {position}, column {column}: {how}.\n\
         The defender claims {claimed}; an honest execution has {honest}."
    );
    // A chosen token must follow, and be the answer's.
    let chosen = op == choose(walked.extent().ops) && part_name == "chosen";
    let answered = position.checked_add(1)?.checked_sub(referee.statement().prompt);
    let answered = answered.and_then(|i| record.transcript.output_ids.get(i as usize)).filter(|_| chosen);
    if let Some(id) = answered {
        text += &format!(" It must also be the transcript's token, which is {id}.");
    }
    let json = json!({
        "block": referee.block(), "step": op, "name": step, "part": part, "part_name": part_name, "position": position,
        "column": column, "rule": how, "claimed": claimed, "honest": honest, "transcript": answered,
    });
    Some(Settled { text, json })
}
