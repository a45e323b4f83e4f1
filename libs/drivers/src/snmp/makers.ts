/**
 * How the makers' agents switch an outlet: which object takes the order, which tells the state, and the numbers that mean on and off.
 * From their MIBs, named in each row. To add a maker: add a row.
 */
export interface Maker {
  title: string
  /** Indices before the outlet's own that are the same for most people; a setting with more parts states them. */
  lead: readonly number[]
  /** Object and number that turn on, off, and off and on. */
  on: readonly [oid: string, value: number]
  off: readonly [oid: string, value: number]
  cycle: readonly [oid: string, value: number]
  /** Object and the numbers it reads: on, off. Those of a change under way count as what still is. */
  state: { oid: string; on: readonly number[]; off: readonly number[] }
}

export const makers = {
  /** PowerNet-MIB rPDUOutletControlOutletCommand, rPDUOutletStatusOutletState. */
  apc: {
    title: 'APC rack PDU, first generation (AP79xx)',
    lead: [],
    on: ['1.3.6.1.4.1.318.1.1.12.3.3.1.1.4', 1],
    off: ['1.3.6.1.4.1.318.1.1.12.3.3.1.1.4', 2],
    cycle: ['1.3.6.1.4.1.318.1.1.12.3.3.1.1.4', 3],
    state: { oid: '1.3.6.1.4.1.318.1.1.12.3.5.1.1.4', on: [1], off: [2] },
  },
  /** PowerNet-MIB rPDU2OutletSwitchedControlCommand, rPDU2OutletSwitchedStatusState: its state counts the other way round. */
  'apc-2': {
    title: 'APC rack PDU, second generation (AP84xx, AP86xx, AP89xx)',
    lead: [],
    on: ['1.3.6.1.4.1.318.1.1.26.9.2.4.1.5', 1],
    off: ['1.3.6.1.4.1.318.1.1.26.9.2.4.1.5', 2],
    cycle: ['1.3.6.1.4.1.318.1.1.26.9.2.4.1.5', 3],
    state: { oid: '1.3.6.1.4.1.318.1.1.26.9.2.3.1.5', on: [2], off: [1] },
  },
  /** PowerNet-MIB sPDUOutletCtl, read and written. */
  'apc-masterswitch': {
    title: 'APC MasterSwitch (AP92xx)',
    lead: [],
    on: ['1.3.6.1.4.1.318.1.1.4.4.2.1.3', 1],
    off: ['1.3.6.1.4.1.318.1.1.4.4.2.1.3', 2],
    cycle: ['1.3.6.1.4.1.318.1.1.4.4.2.1.3', 3],
    state: { oid: '1.3.6.1.4.1.318.1.1.4.4.2.1.3', on: [1], off: [2] },
  },
  /** CPS-MIB ePDUOutletControlOutletCommand, ePDUOutletStatusOutletState. */
  cyberpower: {
    title: 'CyberPower switched ePDU',
    lead: [],
    on: ['1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4', 1],
    off: ['1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4', 2],
    cycle: ['1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4', 3],
    state: { oid: '1.3.6.1.4.1.3808.1.1.3.3.5.1.1.4', on: [1], off: [2] },
  },
  /** EATON-EPDU-MIB outletControlOnCmd, -OffCmd, -RebootCmd take seconds to wait; outletControlStatus has 2 pendingOff, 3 pendingOn. */
  eaton: {
    title: 'Eaton managed ePDU (G3 and later); unit before the outlet, 0 if left out',
    lead: [0],
    on: ['1.3.6.1.4.1.534.6.6.7.6.6.1.4', 0],
    off: ['1.3.6.1.4.1.534.6.6.7.6.6.1.3', 0],
    cycle: ['1.3.6.1.4.1.534.6.6.7.6.6.1.5', 0],
    state: { oid: '1.3.6.1.4.1.534.6.6.7.6.6.1.2', on: [1, 2], off: [0, 3] },
  },
  /** PDU2-MIB switchingOperation, outletSwitchingState. */
  raritan: {
    title: 'Raritan PX2, PX3, PX4; PDU before the outlet, 1 if left out',
    lead: [1],
    on: ['1.3.6.1.4.1.13742.6.4.1.2.1.2', 1],
    off: ['1.3.6.1.4.1.13742.6.4.1.2.1.2', 0],
    cycle: ['1.3.6.1.4.1.13742.6.4.1.2.1.2', 2],
    state: { oid: '1.3.6.1.4.1.13742.6.4.1.2.1.3', on: [7], off: [8] },
  },
  /** Sentry3-MIB outletControlAction, outletStatus. */
  'servertech-3': {
    title: 'Server Technology Switched CDU (Sentry 3); tower and infeed before the outlet, 1.1 if left out',
    lead: [1, 1],
    on: ['1.3.6.1.4.1.1718.3.2.3.1.11', 1],
    off: ['1.3.6.1.4.1.1718.3.2.3.1.11', 2],
    cycle: ['1.3.6.1.4.1.1718.3.2.3.1.11', 3],
    state: { oid: '1.3.6.1.4.1.1718.3.2.3.1.5', on: [1], off: [0] },
  },
  /** Sentry4-MIB st4OutletControlAction, st4OutletState. */
  'servertech-4': {
    title: 'Server Technology PRO1, PRO2 (Sentry 4); unit and cord before the outlet, 1.1 if left out',
    lead: [1, 1],
    on: ['1.3.6.1.4.1.1718.4.1.8.5.1.2', 1],
    off: ['1.3.6.1.4.1.1718.4.1.8.5.1.2', 2],
    cycle: ['1.3.6.1.4.1.1718.4.1.8.5.1.2', 3],
    state: { oid: '1.3.6.1.4.1.1718.4.1.8.3.1.1', on: [1], off: [2] },
  },
} as const satisfies Record<string, Maker>

export type MakerName = keyof typeof makers

export const makerNames = Object.keys(makers) as [MakerName, ...MakerName[]]

/** The outlet's index behind each object, e.g. `1.7`. Undefined for more parts than the maker has. */
export function outletIndex(maker: Maker, outlet: string): string | undefined {
  const parts = outlet.split('.')
  const missing = maker.lead.length + 1 - parts.length
  return missing < 0 ? undefined : [...maker.lead.slice(0, missing), ...parts].join('.')
}
