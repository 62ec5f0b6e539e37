// Compiles every contract with fixed settings and writes ABI and bytecode to artifacts/, one compact file per contract.
// `--check` compiles again and compares with what is committed. A warning about our own sources is an error here.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync, existsSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import solc from 'solc';

const home = dirname(dirname(fileURLToPath(import.meta.url)));
const sourcesAt = join(home, 'src');
const artifactsAt = join(home, 'artifacts');
const codeBytesMax = 24_576; // EIP-170

// No metadata hash and no CBOR trailer: the bytecode depends on the sources' meaning and these settings alone.
const settings = {
  optimizer: { enabled: true, runs: 10_000 },
  viaIR: true,
  evmVersion: 'cancun',
  metadata: { bytecodeHash: 'none', appendCBOR: false },
  outputSelection: { '*': { '*': ['abi', 'evm.bytecode.object', 'evm.deployedBytecode.object'] } },
};

function solidityFiles(folder) {
  return readdirSync(folder, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) return solidityFiles(path);
      return entry.name.endsWith('.sol') ? [path] : [];
    });
}

function readImport(path) {
  const file = join(home, 'node_modules', path);
  return existsSync(file) ? { contents: readFileSync(file, 'utf8') } : { error: `no such import: ${path}` };
}

function compile() {
  const sources = {};
  for (const file of solidityFiles(sourcesAt)) {
    sources[relative(home, file).replaceAll('\\', '/')] = { content: readFileSync(file, 'utf8') };
  }
  const input = { language: 'Solidity', sources, settings };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: readImport }));
  const problems = (output.errors ?? []).filter((e) => e.severity === 'error' || (e.severity === 'warning' && e.sourceLocation?.file.startsWith('src/')));
  if (problems.length > 0) {
    for (const p of problems) console.error(p.formattedMessage);
    process.exit(1);
  }
  const artifacts = new Map();
  for (const [source, contracts] of Object.entries(output.contracts)) {
    if (!source.startsWith('src/')) continue;
    for (const [name, { abi, evm }] of Object.entries(contracts)) {
      const bytecode = evm.bytecode.object;
      if (bytecode === '' && abi.length === 0) continue;
      if (artifacts.has(name)) throw new Error(`two contracts are called ${name}`);
      const codeBytes = evm.deployedBytecode.object.length / 2;
      if (codeBytes > codeBytesMax) {
        console.error(`${name}: ${codeBytes} bytes of code, ${codeBytesMax} are allowed`);
        process.exit(1);
      }
      // A library without public functions compiles to a stub that nobody deploys.
      if (abi.every((item) => item.type === 'error' || item.type === 'event') && codeBytes < 100) continue;
      artifacts.set(`${name}.json`, { codeBytes, text: JSON.stringify({ contract: name, source, abi, bytecode: `0x${bytecode}` }) + '\n' });
    }
  }
  return artifacts;
}

const check = process.argv.includes('--check');
const artifacts = compile();
if (check) {
  const committed = existsSync(artifactsAt) ? readdirSync(artifactsAt).sort() : [];
  const wanted = [...artifacts.keys()].sort();
  const differ = new Set([...committed, ...wanted].filter((file) =>
    !artifacts.has(file) || !committed.includes(file) || readFileSync(join(artifactsAt, file), 'utf8') !== artifacts.get(file).text));
  if (differ.size > 0) {
    console.error(`not what the sources compile to: ${[...differ].join(', ')}; run \`npm run build\` in contracts/`);
    process.exit(1);
  }
  console.log(`${wanted.length} artifacts are what the sources compile to (solc ${solc.version()})`);
} else {
  rmSync(artifactsAt, { recursive: true, force: true });
  mkdirSync(artifactsAt, { recursive: true });
  for (const [file, { text, codeBytes }] of artifacts) {
    writeFileSync(join(artifactsAt, file), text);
    console.log(`${file} ${codeBytes}`);
  }
}
