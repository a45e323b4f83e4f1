// What should this machine boot? One pure function of facts, and its rendering as iPXE text.
import type { AgentMode } from '@muster/shared/agent'
import { kernelArguments } from '@muster/shared/agent'
import type { MachineRow } from '../db/machines.ts'

export interface BootFacts {
  /** undefined: no machine has this address. */
  machine: Pick<MachineRow, 'id' | 'state' | 'netboot' | 'erase' | 'run' | 'arch'> | undefined
  hasAgent: (arch: string) => boolean
}

export type BootPlan =
  | { kind: 'disk'; because: string }
  | { kind: 'agent'; mode: AgentMode; arch: string; machine: { id: string; run: string } | null }
  /** The machine has work to do, but the files for it are missing here. */
  | { kind: 'unavailable'; because: string }

/** The architecture of machines nobody has seen yet: the loader's own word for it is not trusted before the agent has looked. */
const unknownArch = 'amd64'

export function bootPlan({ machine, hasAgent }: BootFacts): BootPlan {
  const mode = machine === undefined ? 'enlist' : modeOf(machine)
  if (mode === undefined) return { kind: 'disk', because: `state ${machine?.state}` }
  const arch = machine?.arch ?? unknownArch
  if (!hasAgent(arch)) return { kind: 'unavailable', because: `this partition has no agent image for ${arch}` }
  if (machine === undefined) return { kind: 'agent', mode, arch, machine: null }
  if (machine.run === null) return { kind: 'unavailable', because: 'the machine has no run' }
  return { kind: 'agent', mode, arch, machine: { id: machine.id, run: machine.run } }
}

function modeOf(machine: Pick<MachineRow, 'state' | 'netboot' | 'erase'>): AgentMode | undefined {
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

/** The plan as an iPXE script. `baseUrl` is this partition's, without a slash at its end. */
export function ipxeScript(plan: BootPlan, options: { baseUrl: string; token: string | null }): string {
  switch (plan.kind) {
    case 'disk':
      // UEFI takes an exit without an error for the end of all booting, and shows its menu; with one it tries the next entry, the disk.
      // biome-ignore lint/suspicious/noTemplateCurlyInString: iPXE's own variable, filled in by the loader
      return `#!ipxe\necho Muster: boot from disk (${plan.because})\n${'iseq ${platform} efi && exit 1 || exit'}\n`
    case 'unavailable':
      return `#!ipxe\necho Muster: cannot boot over the network: ${plan.because}\nsleep 10\nexit 1\n`
    case 'agent': {
      const files = `${options.baseUrl}/boot/files/agent/${plan.arch}`
      const words = [
        'initrd=initrd',
        `${kernelArguments.url}=${options.baseUrl}`,
        `${kernelArguments.mode}=${plan.mode}`,
        ...(options.token === null ? [] : [`${kernelArguments.token}=${options.token}`]),
        // biome-ignore lint/suspicious/noTemplateCurlyInString: iPXE's own variable, filled in by the loader
        'BOOTIF=01-${net0/mac:hexhyp}',
      ]
      return `#!ipxe\necho Muster: ${plan.mode}\nkernel ${files}/vmlinuz ${words.join(' ')}\ninitrd --name initrd ${files}/initrd\nboot\n`
    }
  }
}
