// `npm run agent:build`: the kernel and the memory image that machines boot over the network.
import path from 'node:path'
import { Command, Option } from 'commander'
import { buildAgent, type Kernel, kernels, packageCache } from './build.ts'

const program = new Command('npm run agent:build --')
  .description("Builds the agent's kernel and memory image from Debian's packages. Needs Debian with cpio, zstd, kmod and grub-common.")
  .option(
    '--out <folder>',
    "where vmlinuz, initrd and disk.efi go: a partition's MUSTER_FILES, below agent/amd64",
    '.muster/files/agent/amd64',
  )
  .addOption(
    new Option('--kernel <kind>', 'cloud: virtual machines; generic: real hardware too').choices(Object.keys(kernels)).default('generic'),
  )
  .option('--firmware <package...>', "Debian's packages of firmware, such as firmware-bnx2x; apt must know non-free-firmware", [])
  .option('--cache <folder>', 'fetched packages stay there', packageCache)
  .addHelpText('after', '\nExamples:\n  npm run agent:build\n  npm run agent:build -- --kernel cloud --out /srv/muster/files/agent/amd64')

const { out, kernel, firmware, cache } = program.parse().opts<{ out: string; kernel: Kernel; firmware: string[]; cache: string }>()
const say = (line: string) => process.stderr.write(`  ${line}\n`)
try {
  const startedAt = performance.now()
  say(`building the agent into ${out}`)
  const { files } = await buildAgent({ out: path.resolve(out), kernel, firmware, cache: path.resolve(cache), say })
  for (const { name, bytes, sha256 } of files) say(`${name}  ${(bytes / 2 ** 20).toFixed(1)} MiB  sha256 ${sha256}`)
  say(`done in ${((performance.now() - startedAt) / 1000).toFixed(0)} s`)
} catch (error) {
  say(`the agent was not built: ${(error as Error).message}`)
  process.exit(1)
}
