// Debian's packages and all they depend on, fetched by apt itself: it knows where they are, and checks their signatures.
import { execFile } from 'node:child_process'
import { access, mkdir, readdir } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
/** A slow mirror and a hundred megabytes. */
const limitMs = 600_000

/** Recommended by the kernel's package and of no use in memory, as is what only a package's installation runs, or a program of it that is left out. */
const unwanted =
  /^(linux-base|initramfs-tools|initramfs-tools-core|kmod|klibc-utils|libklibc|debconf|perl|dpkg|cpio|uuid-runtime|python3|libicu72|udev|ucf|dmeventd|init-system-helpers|adduser)$/

/** Puts the packages and their dependencies into `cache`, where they are not there yet. Answers the files. Throws saying what apt said. */
export async function fetchPackages(names: readonly string[], cache: string): Promise<string[]> {
  for (const program of ['/usr/bin/apt-get', '/usr/bin/dpkg-deb']) await access(program).catch(missing(program))
  await mkdir(cache, { recursive: true })
  const wanted = await closure(names)
  const versions = await versionsOf(wanted)
  const have = new Set(await readdir(cache))
  const toFetch = [...versions].filter(([name, version]) => !have.has(fileName(name, version)) && !have.has(fileName(name, version, 'all')))
  if (toFetch.length > 0) await apt('apt-get', ['download', ...toFetch.map(([name, version]) => `${name}=${version}`)], cache)
  const now = new Set(await readdir(cache))
  return [...versions]
    .map(([name, version]) => {
      const file = [fileName(name, version), fileName(name, version, 'all')].find(candidate => now.has(candidate))
      if (!file) throw new Error(`apt fetched no file of ${name} ${version} into ${cache}`)
      return path.join(cache, file)
    })
    .sort()
}

const fileName = (name: string, version: string, arch = 'amd64') => `${name}_${version.replaceAll(':', '%3a')}_${arch}.deb`

const dependsWords = ['depends', ...['--no-recommends', '--no-suggests', '--no-conflicts', '--no-breaks', '--no-replaces', '--no-enhances']]

/** All packages that these need, one way to meet each alternative. */
async function closure(names: readonly string[]): Promise<string[]> {
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

async function versionsOf(names: readonly string[]): Promise<Map<string, string>> {
  const said = await apt('apt-cache', ['policy', ...names])
  const versions = new Map<string, string>()
  for (const [, name, version] of said.matchAll(/^(\S+):\n {2}Installed: .*\n {2}Candidate: (\S+)$/gm))
    if (name && version) versions.set(name, version)
  const unknown = names.filter(name => !versions.has(name) || versions.get(name) === '(none)')
  if (unknown.length > 0) throw new Error(`apt knows no package ${unknown.join(', ')}; run apt-get update`)
  return versions
}

async function apt(program: string, args: readonly string[], cwd = '/'): Promise<string> {
  try {
    // As whom it runs is apt's business: it drops root's rights for the network where it can.
    const { stdout } = await run(program, ['-o', 'APT::Sandbox::User=root', ...args], {
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

function missing(program: string): () => never {
  return () => {
    throw new Error(`${program} is not here: the agent is built on Debian`)
  }
}
