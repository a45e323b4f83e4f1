// Computers with real firmware (BIOS and UEFI) live through everything that Muster does with a machine: real DHCP and TFTP, a real kernel, a real Debian
// whose cloud-init phones home. The partition is killed once in every stage. Before its right installation each suffers one that is to fail.
import { execFile } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { whyNoLab } from '../src/lab/needs.ts'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../../../', import.meta.url))
const limitMs = 1_500_000

const why = whyNoLab()
if (why !== undefined && process.env.CI) throw new Error(`${why}; CI must prove this`)
if (why !== undefined) console.warn(`SKIPPED: the lab: ${why}`)

test.skipIf(why !== undefined)(
  'from an empty disk to a login on an installed Debian, and back to an erased disk, under BIOS and UEFI',
  { timeout: limitMs },
  async () => {
    const suffer = ['--suffer', 'truncated-image', 'wrong-digest']
    const args = ['apps/rack/src/lab/main.ts', '--json', '--kill-in', 'commissioning', 'deploying', 'releasing', ...suffer]
    const { stdout, stderr } = await run(process.execPath, args, {
      cwd: path.resolve(root),
      timeout: limitMs - 10_000,
      maxBuffer: 2 ** 26,
    }).catch((error: { stdout: string; stderr: string }) => error)
    console.log(stderr.split('\n').slice(-4).join('\n'))
    const steps = ['enlisted', 'commissioned', 'failed first', 'deployed', 'logged in', 'rebooted', 'released']
    const whole = (machine: string) => ({ machine, outcome: 'done', steps: steps.map(step => ({ step, ms: expect.any(Number) })) })
    expect(JSON.parse(stdout || '{}'), stderr.slice(-6_000)).toEqual({ lab: [whole('bios1'), whole('uefi2')] })
  },
)
