// `npm run agent:build`: the kernel and the memory image that machines boot over the network.
import path from 'node:path'
import { type Architecture, architectures } from '@muster/shared/machine'
import { Command, Option } from 'commander'
import { buildAgent, type Kernel, kernels, packageCache } from './build.ts'

const program = new Command('npm run agent:build --')
  .description("Builds the agent's kernel and memory image from Debian's packages. Needs Debian with cpio, zstd, kmod and grub-common.")
  .addOption(new Option('--arch <architecture>', 'of the machines; nothing of it is run here').choices([...architectures]).default('amd64'))
  .option(
    '--out <folder>',
    "where it goes: a partition's MUSTER_FILES, below agent/ARCHITECTURE (default: .muster/files/agent/ARCHITECTURE)",
  )
  .addOption(new Option('--kernel <kind>', 'cloud: virtual machines; generic: real hardware too').choices([...kernels]).default('generic'))
  .option('--firmware <package...>', "Debian's packages of firmware, such as firmware-bnx2x; apt must know non-free-firmware", [])
  .option('--cache <folder>', 'fetched packages stay there', packageCache)
  .addHelpText(
    'after',
    '\nExamples:\n  npm run agent:build\n  npm run agent:build -- --arch arm64\n  npm run agent:build -- --kernel cloud --out /srv/muster/files/agent/amd64',
  )

interface Arguments {
  arch: Architecture
  out?: string
  kernel: Kernel
  firmware: string[]
  cache: string
}

const { arch, out = `.muster/files/agent/${arch}`, kernel, firmware, cache } = program.parse().opts<Arguments>()
const say = (line: string) => process.stderr.write(`  ${line}\n`)
try {
  const startedAt = performance.now()
  say(`building the agent into ${out}`)
  const { files } = await buildAgent({ out: path.resolve(out), arch, kernel, firmware, cache: path.resolve(cache), say })
  for (const { name, bytes, sha256 } of files) say(`${name}  ${(bytes / 2 ** 20).toFixed(1)} MiB  sha256 ${sha256}`)
  say(`done in ${((performance.now() - startedAt) / 1000).toFixed(0)} s`)
} catch (error) {
  say(`the agent was not built: ${(error as Error).message}`)
  process.exit(1)
}
