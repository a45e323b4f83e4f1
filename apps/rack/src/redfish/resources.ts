// The resource tree of a virtual Redfish service, after Redfish schema bundles of 2021: what a GET of each path gives, as data made of the
// machine's state. No requests, no answers: see service.ts.
import type { BootOptions } from '../bmc/boot-options.ts'

export type Json = Readonly<Record<string, unknown>>

export interface SystemState {
  id: string
  uuid: string
  power: 'On' | 'Off' | 'PoweringOn' | 'PoweringOff'
  light: boolean
  boot: ReturnType<BootOptions['read']>
}

export const paths = {
  root: '/redfish/v1',
  systems: '/redfish/v1/Systems',
  managers: '/redfish/v1/Managers',
  manager: '/redfish/v1/Managers/bmc',
  chassis: '/redfish/v1/Chassis',
  accountService: '/redfish/v1/AccountService',
  accounts: '/redfish/v1/AccountService/Accounts',
  eventService: '/redfish/v1/EventService',
  subscriptions: '/redfish/v1/EventService/Subscriptions',
  sessionService: '/redfish/v1/SessionService',
  sessions: '/redfish/v1/SessionService/Sessions',
  tasks: '/redfish/v1/TaskService/Tasks',
} as const

/** The reset types of the machine's firmware. */
export const resetTypes = ['On', 'ForceOff', 'GracefulShutdown', 'ForceRestart', 'PowerCycle', 'Nmi'] as const

/** Redfish's words for the devices of IPMI's boot flags, which is where both keep the override. */
export const bootTargets = {
  None: 'none',
  Pxe: 'network',
  Hdd: 'disk',
  Cd: 'cd',
  BiosSetup: 'setup',
  Diags: 'diagnostic',
  Floppy: 'floppy',
} as const

/** The service root, readable by anybody. */
export function rootResource({ hasSessions, hasEvents }: { hasSessions: boolean; hasEvents: boolean }): Json {
  return {
    '@odata.type': '#ServiceRoot.v1_9_0.ServiceRoot',
    '@odata.id': paths.root,
    Id: 'RootService',
    Name: 'Root Service',
    RedfishVersion: '1.11.0',
    Vendor: 'Muster virtual rack',
    Systems: link(paths.systems),
    Chassis: link(paths.chassis),
    Managers: link(paths.managers),
    AccountService: link(paths.accountService),
    ...(hasEvents && { EventService: link(paths.eventService) }),
    ...(hasSessions && { SessionService: link(paths.sessionService) }),
    Links: hasSessions ? { Sessions: link(paths.sessions) } : {},
  }
}

/** One page of a collection: `members` whole, `skip` of them left out before it. */
export function collection(options: { path: string; type: string; members: readonly string[]; skip?: number; pageSize?: number }): Json {
  const { path, type, members, skip = 0, pageSize = members.length } = options
  const next = skip + pageSize
  return {
    '@odata.type': `#${type}Collection.${type}Collection`,
    '@odata.id': path,
    Name: `${type} Collection`,
    'Members@odata.count': members.length,
    Members: members.slice(skip, next).map(link),
    ...(next < members.length && { 'Members@odata.nextLink': `${path}?$skip=${next}` }),
  }
}

/** The computer system. */
export function systemResource({ id, uuid, power, light, boot }: SystemState): Json {
  const path = `${paths.systems}/${id}`
  const target = Object.entries(bootTargets).find(([, device]) => device === boot?.device)?.[0] ?? 'None'
  return {
    '@odata.type': '#ComputerSystem.v1_13_0.ComputerSystem',
    '@odata.id': path,
    Id: id,
    Name: 'System',
    SystemType: 'Physical',
    Manufacturer: 'Muster',
    Model: 'Virtual Machine',
    SerialNumber: uuid.slice(0, 8),
    AssetTag: '',
    UUID: uuid,
    PowerState: power,
    LocationIndicatorActive: light,
    Status: { State: 'Enabled', Health: 'OK' },
    Boot: {
      BootSourceOverrideEnabled: boot === undefined ? 'Disabled' : boot.lasting === 'once' ? 'Once' : 'Continuous',
      BootSourceOverrideTarget: target,
      'BootSourceOverrideTarget@Redfish.AllowableValues': Object.keys(bootTargets),
      BootSourceOverrideMode: boot?.firmware === 'legacy' ? 'Legacy' : 'UEFI',
      'BootSourceOverrideMode@Redfish.AllowableValues': ['Legacy', 'UEFI'],
    },
    Links: { ManagedBy: [link(paths.manager)], Chassis: [] },
    Actions: {
      '#ComputerSystem.Reset': {
        target: `${path}/Actions/ComputerSystem.Reset`,
        'ResetType@Redfish.AllowableValues': resetTypes,
      },
    },
  }
}

/** The BMC itself. */
export function managerResource(): Json {
  return {
    '@odata.type': '#Manager.v1_11_0.Manager',
    '@odata.id': paths.manager,
    Id: 'bmc',
    Name: 'Manager',
    ManagerType: 'BMC',
    FirmwareVersion: '1.0',
    Status: { State: 'Enabled', Health: 'OK' },
  }
}

/** Who may log in, and what a password must be like. */
export function accountServiceResource({ min, max }: { min: number; max: number }): Json {
  return {
    '@odata.type': '#AccountService.v1_10_0.AccountService',
    '@odata.id': paths.accountService,
    Id: 'AccountService',
    Name: 'Account Service',
    ServiceEnabled: true,
    MinPasswordLength: min,
    MaxPasswordLength: max,
    Accounts: link(paths.accounts),
  }
}

/** One account; nobody ever reads its password. */
export function accountResource({ path, name, privilege }: { path: string; name: string; privilege: string }): Json {
  const roles: Readonly<Record<string, string>> = { USER: 'ReadOnly', OPERATOR: 'Operator' }
  return {
    '@odata.type': '#ManagerAccount.v1_8_0.ManagerAccount',
    '@odata.id': path,
    Id: path.slice(path.lastIndexOf('/') + 1),
    Name: 'User Account',
    UserName: name,
    Password: null,
    RoleId: roles[privilege] ?? 'Administrator',
    Enabled: true,
    Locked: false,
  }
}

/** Where events are subscribed to. */
export function eventServiceResource(): Json {
  return {
    '@odata.type': '#EventService.v1_7_0.EventService',
    '@odata.id': paths.eventService,
    Id: 'EventService',
    Name: 'Event Service',
    ServiceEnabled: true,
    EventTypesForSubscription: ['StatusChange', 'Alert'],
    Subscriptions: link(paths.subscriptions),
  }
}

export interface Subscription {
  id: string
  destination: string
  context: string
}

export function subscriptionResource({ id, destination, context }: Subscription): Json {
  return {
    '@odata.type': '#EventDestination.v1_11_0.EventDestination',
    '@odata.id': `${paths.subscriptions}/${id}`,
    Id: id,
    Name: 'Subscription',
    Destination: destination,
    Context: context,
    Protocol: 'Redfish',
  }
}

/** What is posted when the power has changed. */
export function powerEvent({ context, systemPath, number }: { context: string; systemPath: string; number: number }): Json {
  return {
    '@odata.type': '#Event.v1_7_0.Event',
    Id: String(number),
    Name: 'Power changed',
    Context: context,
    Events: [
      {
        EventType: 'StatusChange',
        EventId: String(number),
        MessageId: 'ResourceEvent.1.0.ResourceChanged',
        OriginOfCondition: link(systemPath),
      },
    ],
  }
}

/** Where sessions are made. */
export function sessionServiceResource(): Json {
  return {
    '@odata.type': '#SessionService.v1_1_8.SessionService',
    '@odata.id': paths.sessionService,
    Id: 'SessionService',
    Name: 'Session Service',
    ServiceEnabled: true,
    Sessions: link(paths.sessions),
  }
}

/** One session; nobody ever reads its password again. */
export function sessionResource({ id, user }: { id: string; user: string }): Json {
  return {
    '@odata.type': '#Session.v1_3_0.Session',
    '@odata.id': `${paths.sessions}/${id}`,
    Id: id,
    Name: 'User Session',
    UserName: user,
    Password: null,
  }
}

/** A task as its monitor shows it. */
export function taskResource({ id, state, message }: { id: string; state: string; message?: string }): Json {
  return {
    '@odata.type': '#Task.v1_5_1.Task',
    '@odata.id': `${paths.tasks}/${id}`,
    Id: id,
    Name: 'Task',
    TaskState: state,
    TaskStatus: state === 'Exception' ? 'Critical' : 'OK',
    Messages: message === undefined ? [] : [{ MessageId: 'Base.1.8.GeneralError', Message: message }],
  }
}

/** An error body (DSP0266 8.6). */
export function errorResource(messageId: string, message: string, property?: string): Json {
  const info = {
    MessageId: `Base.1.8.${messageId}`,
    Message: message,
    MessageArgs: property === undefined ? [] : [property],
    Severity: 'Warning',
  }
  return { error: { code: info.MessageId, message, '@Message.ExtendedInfo': [info] } }
}

function link(path: string): Json {
  return { '@odata.id': path }
}
