// Fails on known holes of high severity in what is shipped. Where the registry cannot be asked (no network, a mirror that has no advisories) it says so and
// fails nothing: what cannot be known is no reason to stop a change. Run it in the folder of a package-lock.json.
import { spawnSync } from 'node:child_process'

const serious = ['high', 'critical']
/** npm's own retries would take minutes on a host without network. */
const args = ['audit', '--omit=dev', '--audit-level=high', '--json', '--fetch-retries=0', '--fetch-timeout=30000']
const limitMs = 90_000

const { stdout, error } = spawnSync('npm', args, { encoding: 'utf8', timeout: limitMs, maxBuffer: 64 * 1024 * 1024 })
const report = reportOf(stdout)
const counts = report?.metadata?.vulnerabilities
if (counts === undefined) {
  const reason = report?.message ?? report?.error?.summary ?? error?.message ?? 'npm said nothing that can be read'
  // A registry's address is nobody's business in a log that may be published.
  console.log(`not checked: ${String(reason).replaceAll(/https?:\/\/\S+/g, 'the registry')}`)
} else {
  const found = Object.values(report.vulnerabilities ?? {}).filter(({ severity }) => serious.includes(severity))
  for (const { name, severity, range, via } of found) {
    const why = via.map(each => (typeof each === 'string' ? `by ${each}` : `${each.title} (${each.url})`))
    console.log(`${severity}: ${name} ${range}: ${[...new Set(why)].join('; ')}`)
  }
  console.log(`${found.length} of ${report.metadata.dependencies?.prod ?? '?'} packages that are shipped have known holes of high severity`)
  process.exitCode = found.length === 0 ? 0 : 1
}

function reportOf(text) {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
