/** The virtual Redfish service judged by the field's own client: OpenStack's sushy, of Debian. What it takes for a BMC is one. */
import { execFile, execFileSync } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test } from 'vitest'
import { account, startTwoDoors, type TwoDoors } from './redfish-machine.ts'

const run = promisify(execFile)
/** Debian's own: packages are installed for it and for no other Python on the path. */
const python = '/usr/bin/python3'

/** Without sushy a developer's run goes on and says so; in CI it is a failure, or the proof would quietly vanish. */
function needsSushy(): { skip: boolean } {
  try {
    execFileSync(python, ['-c', 'import sushy'], { stdio: 'ignore' })
    return { skip: false }
  } catch (cause) {
    const missing = 'sushy is not installed (Debian: apt-get install -y python3-sushy)'
    if (process.env.CI) throw new Error(`${missing}; CI must prove this`, { cause })
    console.warn(`SKIPPED: ${missing}`)
    return { skip: true }
  }
}

const preamble = `
import sys, time, urllib3
urllib3.disable_warnings()
import sushy
from sushy import auth
url, user, password, way = sys.argv[1:5]
kind = {'session': auth.SessionAuth, 'basic': auth.BasicAuth}[way]
service = sushy.Sushy(url, verify=False, auth=kind(username=user, password=password))
[member] = service.get_system_collection().get_members()
def wait(state):
    for _ in range(100):
        member.refresh(force=True)
        if member.power_state == state: return
        time.sleep(0.05)
    raise SystemExit('still ' + str(member.power_state))
`

/** Without REQUESTS_CA_BUNDLE and its like, which go before `verify=False` in Python's requests. */
const options = { timeout: 25_000, env: { PATH: process.env.PATH } }

/** Runs a script that has `service` and `member`, and gives what it printed. */
async function sushy({ redfish }: TwoDoors, way: 'session' | 'basic', script: string): Promise<string> {
  const { stdout } = await run(python, ['-c', preamble + script, redfish.url, account.name, account.password, way], options)
  return stdout
}

async function doors(options: Parameters<typeof startTwoDoors>[0] = {}): Promise<TwoDoors> {
  const started = await startTwoDoors(options)
  onTestFinished(async () => await started[Symbol.asyncDispose]())
  return started
}

describe.skipIf(needsSushy().skip)('sushy', () => {
  test.each([
    { protocol: 'https' as const, way: 'session' as const },
    { protocol: 'http' as const, way: 'basic' as const },
  ])('power on, off, and restarts, over $protocol with $way authentication', async ({ protocol, way }) => {
    const both = await doors({ protocol, powerEffectMs: 50 })
    const script = `
wait(sushy.PowerState.OFF)
member.reset_system(sushy.ResetType.ON); wait(sushy.PowerState.ON)
member.reset_system(sushy.ResetType.FORCE_RESTART)
member.reset_system(sushy.ResetType.FORCE_OFF); wait(sushy.PowerState.OFF)
print(sorted(value.value for value in member.get_allowed_reset_system_values()))
`
    expect(await sushy(both, way, script)).toContain("'ForceOff', 'ForceRestart', 'GracefulShutdown', 'Nmi', 'On', 'PowerCycle'")
    expect(both.redfish.counters.resets).toMatchObject({ On: 1, ForceRestart: 1, ForceOff: 1 })
    expect(both.machine.power()).toBe('off')
  })

  test.each(['ignored', 'required'] as const)('the boot device is set once, for good, and taken back; ETags are %s', async etags => {
    const both = await doors({ faults: { etags } })
    const script = `
def show():
    member.refresh(force=True)
    print(member.boot.target.name, member.boot.enabled.name, member.boot.mode.name)
def override(target, enabled, mode):
    member.set_system_boot_options(sushy.BootSource[target], sushy.BootSourceOverrideEnabled[enabled], sushy.BootSourceOverrideMode[mode])
    show()
`
    expect(await sushy(both, 'session', `${script}override('PXE', 'ONCE', 'UEFI')`)).toBe('PXE ONCE UEFI\n')
    expect(both.bootOptions.read(Date.now())).toEqual({ valid: true, lasting: 'once', firmware: 'uefi', device: 'network' })
    const rest = `${script}override('HDD', 'CONTINUOUS', 'LEGACY')\noverride('NONE', 'DISABLED', 'UEFI')`
    expect(await sushy(both, 'session', rest)).toBe('HDD CONTINUOUS LEGACY\nNONE DISABLED UEFI\n')
    expect(both.bootOptions.read(Date.now())).toBeUndefined()
  })

  test('the manager, the system and a wrong password', async () => {
    const both = await doors()
    const script = 'print(member.uuid, member.manufacturer, [manager.firmware_version for manager in member.managers])'
    expect(await sushy(both, 'basic', script)).toContain("Muster ['1.0']")
    const wrong = run(python, ['-c', preamble, both.redfish.url, account.name, 'wrong', 'session'], options)
    await expect(wrong).rejects.toMatchObject({ stderr: expect.stringContaining('AccessError') })
  })
})
