// `npm run images`: what a partition can install, as files on its server.
import path from 'node:path'
import { createLog } from '@muster/server/log'
import { dataSources } from '@muster/shared/cloud-init'
import { architectures, type ImageForm, imageForms, osName } from '@muster/shared/machine'
import { Command, InvalidArgumentError, Option } from 'commander'
import { Catalogue } from './domain/catalogue.ts'
import { removeImage, takeImage } from './domain/image-store.ts'

const program = new Command('npm run images --').description(
  'Takes images in, lists and removes them. A partition that runs sees changes within seconds.',
)
const files = () =>
  new Option('--files <dir>', "the partition's MUSTER_FILES")
    .env('MUSTER_FILES')
    .default('files')
    .argParser(text => path.resolve(text))
const arch = () => new Option('--arch <name>', 'architecture').choices([...architectures]).default('amd64')

program
  .command('add')
  .description('take an image in: whole and with the right digest, or not at all')
  .argument('<os>', 'what it is deployed as, such as debian/12', systemName)
  .argument('<source>', 'a file, or an http or https URL: a disk image or a root tarball, as it is or packed by gzip, xz or zstd')
  .requiredOption('--sha256 <hex>', 'its digest, from who made it', digest)
  .option('--title <text>', 'for people; the name where left out')
  .addOption(new Option('--data-source <name>', 'which data source of cloud-init it is made for').choices([...dataSources]))
  .addOption(
    new Option('--form <name>', 'disk: a whole disk; tar: a root tarball, deployed with a storage layout').choices([...imageForms]),
  )
  .addOption(arch())
  .addOption(files())
  .action(
    async (
      os: string,
      source: string,
      options: { sha256: string; title?: string; arch: string; files: string; dataSource?: 'maas'; form?: ImageForm },
    ) => {
      const stopping = new AbortController()
      process.once('SIGINT', () => stopping.abort(new Error('stopped')))
      const { title = os, ...rest } = options
      const outcome = await takeImage({ os, source, title, ...rest, progress: progressOf(source), signal: stopping.signal })
      say(outcome === 'known' ? `${os} for ${options.arch} is there already` : `${os} for ${options.arch} is there`)
    },
  )
program
  .command('list')
  .description('what is there')
  .addOption(files())
  .action((options: { files: string }) => {
    const log = createLog({ level: 'warn', name: 'images', destination: process.stderr })
    for (const { os, arch: name, sizeBytes, sha256, title } of new Catalogue({ partition: '', folder: options.files, log }).images)
      process.stdout.write(`${os}\t${name}\t${(sizeBytes / 2 ** 20).toFixed(1)} MiB\t${sha256.slice(0, 16)}\t${title}\n`)
  })
program
  .command('remove')
  .description('remove an image; a deployment that has not fetched it yet fails')
  .argument('<os>', 'such as debian/12', systemName)
  .addOption(arch())
  .addOption(files())
  .action(async (os: string, options: { arch: string; files: string }) => {
    const outcome = await removeImage(options.files, os, options.arch)
    if (outcome === 'absent') throw new Error(`there is no image ${os} for ${options.arch} in ${options.files}`)
    say(`${os} for ${options.arch} is removed`)
  })

try {
  await program.parseAsync()
} catch (error) {
  say((error as Error).message)
  process.exitCode = 1
}

function say(line: string): void {
  process.stderr.write(`${line}\n`)
}

/** A line that is written over where somebody looks, and none where not. */
function progressOf(source: string): (bytes: number) => void {
  let shownAt = 0
  return bytes => {
    if (!process.stderr.isTTY || Date.now() - shownAt < 200) return
    shownAt = Date.now()
    process.stderr.write(`\r\x1b[2K  ${(bytes / 2 ** 20).toFixed(0)} MiB of ${source}\r`)
  }
}

function systemName(text: string): string {
  const parsed = osName.safeParse(text)
  if (!parsed.success) throw new InvalidArgumentError('must be <family>/<release>, such as debian/12')
  return parsed.data
}

function digest(text: string): string {
  if (!/^[0-9a-fA-F]{64}$/.test(text)) throw new InvalidArgumentError('must be 64 hexadecimal digits')
  return text
}
