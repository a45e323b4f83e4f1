// What should this machine boot? One pure function of facts, and its rendering as iPXE text.
import type { AgentMode } from '@muster/shared/agent'
import { kernelArguments } from '@muster/shared/agent'
import type { Architecture } from '@muster/shared/machine'
import { z } from 'zod'
import type { BootRow } from '../db/machines.ts'

export interface BootFacts {
  /** undefined: no machine has this address. */
  machine: BootRow | undefined
  /** What its loader says that it is. Left out: it was not asked. */
  loaderArch?: Architecture | undefined
  hasAgent: (arch: string) => boolean
}

export type BootPlan =
  | { kind: 'disk'; because: string; arch: string }
  | { kind: 'agent'; mode: AgentMode; arch: string; machine: { id: string; run: string } | null; isGuess?: true }
  /** The machine has work to do, but the files for it are missing here. */
  | { kind: 'unavailable'; because: string; isGuess?: true }

/** The architecture of machines nobody has seen yet, as long as their loader has said nothing else. */
const unknownArch = 'amd64'

export function bootPlan({ machine, loaderArch, hasAgent }: BootFacts): BootPlan {
  const mode = machine === undefined ? 'enlist' : modeOf(machine)
  const arch = machine?.arch ?? loaderArch ?? unknownArch
  const guess = machine === undefined && loaderArch === undefined && ({ isGuess: true } as const)
  if (mode === undefined) return { kind: 'disk', because: `state ${machine?.state}`, arch }
  if (!hasAgent(arch)) return { kind: 'unavailable', because: `this partition has no agent image for ${arch}`, ...guess }
  if (machine === undefined) return { kind: 'agent', mode, arch, machine: null, ...guess }
  if (machine.run === null) return { kind: 'unavailable', because: 'the machine has no run' }
  return { kind: 'agent', mode, arch, machine: { id: machine.id, run: machine.run } }
}

function modeOf(machine: Pick<BootRow, 'state' | 'netboot' | 'erase'>): AgentMode | undefined {
  switch (machine.state) {
    case 'commissioning':
      return 'commission'
    case 'deploying':
      // Installed once means installed: the next boot is from disk.
      return machine.netboot ? 'install' : undefined
    case 'releasing':
      return machine.erase === null ? undefined : 'erase'
    case 'rescue':
      return 'rescue'
    case 'new':
    case 'failed_commissioning':
    case 'ready':
    case 'reserved':
    case 'allocated':
    case 'failed_deployment':
    case 'deployed':
    case 'failed_releasing':
    case 'broken':
    case 'retired':
      return undefined
  }
}

/** Of servers with a monitor and serial-over-LAN. The last is /dev/console: there is a tty0 always, behind ttyS0 perhaps nothing. No notices: one of them is the token. */
export const usualAgentParameters = 'console=ttyS0,115200 console=tty0 loglevel=5'

/** More would be cut off: kernels take 2048 bytes in all (x86: COMMAND_LINE_SIZE), and what the script says itself comes first. */
const agentParametersMost = 1024
/** Nothing that iPXE or the shell of GRUB would read as more than a letter of a word. */
const parameterPattern = /^[A-Za-z0-9_.,:=@/+%*-]+$/
const isOurs = (word: string) => /^(muster\.|BOOTIF=|initrd=)/i.test(word)

/** Words for the agent's kernel, as its documentation has them (admin-guide/kernel-parameters), with single spaces. */
export const agentParameters = z
  .string()
  .max(agentParametersMost)
  .refine(
    text => text.split(' ').every(word => parameterPattern.test(word) && word !== '--'),
    'must be kernel parameters with single spaces, of letters, digits and _ . , : = @ / + % * -',
  )
  .refine(text => !text.split(' ').some(isOurs), 'must not have muster.*, BOOTIF or initrd, which the boot script says itself')

/** The plan as an iPXE script. `baseUrl` is this partition's, without a slash at its end; `agentParameters` are {@link agentParameters}. */
export function ipxeScript(plan: BootPlan, options: { baseUrl: string; token: string | null; agentParameters: string }): string {
  switch (plan.kind) {
    case 'disk':
      return diskScript(plan, options.baseUrl)
    case 'unavailable':
      return `#!ipxe\n${askedAgain(plan, options.baseUrl)}echo Muster: cannot boot over the network: ${plan.because}\nsleep 10\nexit 1\n`
    case 'agent': {
      const files = `${options.baseUrl}/boot/files/agent/${plan.arch}`
      const words = [
        'initrd=initrd',
        `${kernelArguments.url}=${options.baseUrl}`,
        `${kernelArguments.mode}=${plan.mode}`,
        ...(options.token === null ? [] : [`${kernelArguments.token}=${options.token}`]),
        // biome-ignore lint/suspicious/noTemplateCurlyInString: iPXE's own variable, filled in by the loader
        'BOOTIF=01-${net0/mac:hexhyp}',
        options.agentParameters,
      ]
      // One file that does not come must not leave the machine at a prompt: it asks anew, and the plan may be another by then.
      return `#!ipxe
${askedAgain(plan, options.baseUrl)}echo Muster: ${plan.mode}
kernel ${files}/vmlinuz ${words.join(' ')} || goto again
initrd --name initrd ${files}/initrd || goto again
boot
:again
echo Muster: a file did not come; asking again
imgfree
sleep 5
chain --replace ${options.baseUrl}/boot/ipxe/\${net0/mac}
`
    }
  }
}

/** A stranger of another architecture than was guessed asks for its own script. */
function askedAgain({ isGuess }: { isGuess?: true }, baseUrl: string): string {
  return isGuess ? `iseq \${buildarch} arm64 && chain --replace ${baseUrl}/boot/ipxe/\${net0/mac}?${archParameter}=arm64 ||\n` : ''
}

/** Where a loader says what it is: `?arch=arm64`. */
export const archParameter = 'arch'

/**
 * BIOS goes on to the next device by itself. UEFI would first try every other way of booting over the network, for minutes, so a loader of ours finds the
 * disk's; without it an exit with an error is the next entry's turn, and one without is the firmware's menu.
 */
function diskScript({ because, arch }: BootPlan & { kind: 'disk' }, baseUrl: string): string {
  return `#!ipxe
echo Muster: boot from disk (${because})
iseq \${platform} efi || exit
chain ${baseUrl}/boot/files/agent/${arch}/disk.efi || exit 1
exit 1
`
}
