// Debian's packages and all they depend on, fetched by apt itself: it knows where they are, and checks their signatures. For another architecture than this
// computer's, or from a later Debian, it is asked with a state of its own, beside the packages: nothing of this computer's changes.
import { execFile } from 'node:child_process'
import { access, mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import type { Architecture } from '@muster/shared/machine'

const run = promisify(execFile)
/** A slow mirror and a hundred megabytes. */
const limitMs = 600_000

/** Recommended by the kernel's package and of no use in memory, as is what only a package's installation runs, or a program of it that is left out. */
const unwanted =
  /^(linux-base|initramfs-tools|initramfs-tools-core|kmod|klibc-utils|libklibc|debconf|perl|dpkg|cpio|uuid-runtime|python3|libicu72|udev|ucf|dmeventd|init-system-helpers|adduser)$/

export interface Source {
  readonly arch: Architecture
  /** Another release of Debian's than this computer's, by its code name; from the same mirror. */
  readonly release?: string
  /** Fetched packages stay there. */
  readonly cache: string
}

/** Puts the packages and their dependencies into the cache, where they are not there yet. Answers the files. Throws saying what apt said. */
export async function fetchPackages(names: readonly string[], source: Source): Promise<string[]> {
  const { arch, cache } = source
  for (const program of ['/usr/bin/apt-get', '/usr/bin/dpkg-deb']) await access(program).catch(missing(program))
  await mkdir(cache, { recursive: true })
  const apt = await aptFor(source)
  const versions = await versionsOf(apt, await closure(apt, names))
  const filesOf = (name: string, version: string) => [arch, 'all'].map(kind => `${name}_${version.replaceAll(':', '%3a')}_${kind}.deb`)
  const have = new Set(await readdir(cache))
  const toFetch = [...versions].filter(([name, version]) => !filesOf(name, version).some(file => have.has(file)))
  if (toFetch.length > 0) await apt('apt-get', ['download', ...toFetch.map(([name, version]) => `${name}=${version}`)], cache)
  const now = new Set(await readdir(cache))
  return [...versions]
    .map(([name, version]) => {
      const file = filesOf(name, version).find(candidate => now.has(candidate))
      if (!file) throw new Error(`apt fetched no file of ${name} ${version} into ${cache}`)
      return path.join(cache, file)
    })
    .sort()
}

/** Runs apt's programs. Answers what they print. */
type Apt = (program: 'apt-get' | 'apt-cache', args: readonly string[], cwd?: string) => Promise<string>

const ownArch: Architecture = process.arch === 'arm64' ? 'arm64' : 'amd64'
const ownLists = '/var/lib/apt/lists'

async function aptFor({ arch, release, cache }: Source): Promise<Apt> {
  if (arch === ownArch && release === undefined) return aptWith([])
  const folder = path.join(cache, `apt-${arch}${release === undefined ? '' : `-${release}`}`)
  for (const name of ['state/lists/partial', 'cache/archives/partial']) await mkdir(path.join(folder, name), { recursive: true })
  // Nothing is installed there.
  await writeFile(path.join(folder, 'status'), '')
  const words = [
    ...[`APT::Architecture=${arch}`, `APT::Architectures::=${arch}`, 'Acquire::Languages=none'],
    ...[`Dir::State=${folder}/state`, `Dir::State::status=${folder}/status`, `Dir::Cache=${folder}/cache`],
  ]
  if (release !== undefined) {
    await writeFile(path.join(folder, 'sources.list'), await sourceOf(release))
    words.push(`Dir::Etc::sourcelist=${folder}/sources.list`, 'Dir::Etc::sourceparts=/dev/null')
    words.push('Dir::Etc::preferences=/dev/null', 'Dir::Etc::preferencesparts=/dev/null')
  }
  const apt = aptWith(words)
  // As old as this computer's own lists, and no older: apt-get update here is the word to look anew there.
  const stamp = path.join(folder, 'updated')
  const [own, there] = await Promise.all(
    [ownLists, stamp].map(name =>
      stat(name)
        .then(({ mtimeMs }) => mtimeMs)
        .catch(() => 0),
    ),
  )
  if ((there as number) <= (own as number) || there === 0) {
    await apt('apt-get', ['update', '--error-on=any'])
    await writeFile(stamp, '')
  }
  return apt
}

/** The line of another release, from where this computer's Debian comes. */
async function sourceOf(release: string): Promise<string> {
  const said = await aptWith([])('apt-get', ['indextargets', '--format', '$(REPO_URI) $(LABEL) $(COMPONENT)', 'Identifier: Packages'])
  const mirror = /^(\S+) Debian main$/m.exec(said)?.[1]
  if (mirror === undefined) throw new Error('apt knows no source of Debian; run apt-get update')
  return `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror} ${release} main\n`
}

const dependsWords = ['depends', ...['--no-recommends', '--no-suggests', '--no-conflicts', '--no-breaks', '--no-replaces', '--no-enhances']]

/** All packages that these need, one way to meet each alternative. */
async function closure(apt: Apt, names: readonly string[]): Promise<string[]> {
  const found = new Set<string>()
  // A whole generation in one question: apt reads all its lists anew for each.
  for (let next = new Set(names.filter(name => !unwanted.test(name))); next.size > 0; ) {
    for (const name of next) found.add(name)
    const said = await apt('apt-cache', [...dependsWords, ...next])
    next = new Set()
    // "|Depends" is an alternative to the line behind it; <…> is a virtual package.
    for (const [, alternative, name] of said.matchAll(/^ {2,}(\|?)(?:Pre)?Depends: (\S+)$/gm))
      if (alternative === '' && name !== undefined && !name.startsWith('<') && !found.has(name) && !unwanted.test(name)) next.add(name)
  }
  return [...found].sort()
}

async function versionsOf(apt: Apt, names: readonly string[]): Promise<Map<string, string>> {
  const said = await apt('apt-cache', ['policy', ...names])
  const versions = new Map<string, string>()
  for (const [, name, version] of said.matchAll(/^(\S+):\n {2}Installed: .*\n {2}Candidate: (\S+)$/gm))
    if (name && version) versions.set(name, version)
  const unknown = names.filter(name => !versions.has(name) || versions.get(name) === '(none)')
  if (unknown.length > 0) throw new Error(`apt knows no package ${unknown.join(', ')}; run apt-get update`)
  return versions
}

/** apt with these options. */
function aptWith(options: readonly string[]): Apt {
  // As whom it runs is apt's business: it drops root's rights for the network where it can.
  const words = ['APT::Sandbox::User=root', ...options].flatMap(option => ['-o', option])
  return async (program, args, cwd = '/') => {
    try {
      const { stdout } = await run(program, [...words, ...args], {
        cwd,
        env: { ...process.env, LC_ALL: 'C' },
        timeout: limitMs,
        maxBuffer: 64 * 2 ** 20,
      })
      return stdout
    } catch (cause) {
      const { stderr = '' } = cause as { stderr?: string }
      throw new Error(`${program} ${args[0]}: ${stderr.trim() || (cause as Error).message}`, { cause })
    }
  }
}

function missing(program: string): () => never {
  return () => {
    throw new Error(`${program} is not here: the agent is built on Debian`)
  }
}
